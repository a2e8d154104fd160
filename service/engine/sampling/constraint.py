"""Output that keeps to a JSON schema, a regular expression or a grammar: what would leave it is never chosen.

Which tokens may come next is what llguidance computes. Every row of a draft tree is masked by the text of its own path,
so that drafting stays lossless; below a token that is not allowed nothing is reached, and nothing is masked.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from drafters.tree import DraftTree
from service.engine.sampling.grammars import Constraint, inspect, refused
from service.engine.sampling.vocabulary import vocabulary_of
from service.errors import InvalidRequest

KEPT = 64
"""Compiled constraints that are kept, those used last."""


class ConstraintCompiler:
    """Makes constraints for one model; its vocabulary is read at the first."""

    def __init__(self, tokenizer: Any, vocab_size: int, eos_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids
        self._turn = threading.Lock()
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def prepare(self, constraint: Constraint) -> None:
        """Compile a constraint, unless it is kept: seconds for the worst, so never in the engine's thread.

        Raises:
            InvalidRequest: the constraint cannot be used, or the model has no tokenizer that allows constraints.
        """
        self._compiled_form(constraint)

    def start(self, constraint: Constraint, prompt_len: int = 0) -> ConstrainedText:
        """The state of an output that begins behind `prompt_len` tokens of its text. Errors as of `prepare`."""
        matcher = self._compiled_form(constraint).deep_copy()
        return ConstrainedText(matcher, prompt_len, self._vocab_size, self._eos_ids)

    def _compiled_form(self, constraint: Constraint) -> LLMatcher:
        digest = constraint.digest
        with self._turn:
            found = self._compiled.get(digest)
            if found is not None:
                self._compiled.move_to_end(digest)
                return found
        grammar = inspect(constraint)
        self.check_tokenizer()
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0)
        if matcher.is_error():
            raise refused(constraint, matcher.get_error())
        with self._turn:
            self._compiled[digest] = matcher
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        return matcher

    def check_tokenizer(self) -> None:
        """Refuse constraints over a model whose tokenizer does not allow them. Raises InvalidRequest."""
        if self._tokenizer is None or not self._tokenizer.is_fast or not self._eos_ids:
            raise InvalidRequest(
                "Constrained output needs a model with a fast tokenizer and an end-of-sequence token.",
                hint="Ask without a constraint.",
                param="structured_outputs",
            )

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        self.check_tokenizer()
        try:
            return vocabulary_of(self._tokenizer, self._vocab_size, self._eos_ids)
        except ValueError as error:
            raise InvalidRequest(
                f"Output cannot be constrained with this model's tokenizer: {error}.", param="structured_outputs"
            ) from error


class ConstrainedText:
    """How far one request's output has come in what it must be."""

    def __init__(self, matcher: LLMatcher, prompt_len: int, vocab_size: int, eos_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._consumed = prompt_len
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids

    def adjust(self, logits: Tensor, tokens: Sequence[int], tree: DraftTree) -> Tensor:
        """Logits [n + 1, V] behind the text's last token and the tree's nodes, -inf where a token is not allowed.

        `tokens` is the whole text, which only grows from call to call. Raises InvalidRequest where the matcher meets a
        limit of its own.
        """
        self._matcher.consume_tokens(list(tokens[self._consumed :]))  # an error stays, and is found below
        self._consumed = len(tokens)
        allowed = np.ones((len(tree) + 1, self._vocab_size), dtype=np.bool_)
        allowed[0] = self._allowed()
        path: list[int] = []  # the nodes that the matcher has consumed
        reached = {-1}
        for node, (parent, token) in enumerate(zip(tree.parents.tolist(), tree.tokens.tolist(), strict=True)):
            if parent not in reached or token in self._eos_ids or not allowed[parent + 1, token]:
                continue
            path = self._move(path, tree.path_to(node), tree)
            allowed[node + 1] = self._allowed()
            reached.add(node)
        self._move(path, [], tree)
        return logits.masked_fill(torch.from_numpy(~allowed).to(logits.device), -math.inf)

    def _move(self, here: list[int], there: list[int], tree: DraftTree) -> list[int]:
        """Take the matcher from one node's path to another's."""
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(here, there, strict=False)))
        self._matcher.rollback(len(here) - shared)
        self._matcher.consume_tokens([int(tree.tokens[node]) for node in there[shared:]])
        return there

    def _allowed(self) -> np.ndarray:
        """bool [V]: the tokens that may come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise InvalidRequest(
                "The output cannot be constrained further: the matcher meets a limit of its own.",
                hint="Ask for a simpler expression, grammar or schema.",
                param="structured_outputs",
            )
        return np.unpackbits(bits, bitorder="little")[: self._vocab_size].astype(np.bool_)
