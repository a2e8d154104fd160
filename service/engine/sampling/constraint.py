"""Output that keeps to a JSON schema, a regular expression or a grammar: what would leave it is never chosen.

Which tokens may come next is what llguidance computes. Every row of a draft tree is masked by the text of its own path,
so that drafting stays lossless; below a token that is not allowed nothing is reached, and nothing is masked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any, Literal

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from drafters.tree import DraftTree
from service.errors import InvalidRequest

_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As Python writes JSON. A small model that may put white space anywhere puts it everywhere."""


@dataclass(frozen=True)
class Constraint:
    """What the output must be: a JSON value of a schema, a match of a regular expression, a sentence of a grammar.

    text: the JSON schema; the expression, in the syntax of Rust's regex; the grammar, in Lark's syntax.
    """

    kind: Literal["json_schema", "regex", "grammar"]
    text: str

    @classmethod
    def one_of(cls, choices: Sequence[str]) -> Constraint:
        """The output is one of some texts."""
        return cls("grammar", "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices))


class ConstraintCompiler:
    """Makes constraints for one model; its vocabulary is read at the first."""

    def __init__(self, tokenizer: Any, vocab_size: int, eos_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids

    def compile(self, constraint: Constraint, prompt_len: int = 0) -> ConstrainedText:
        """The state of one request's output, which begins behind `prompt_len` tokens of its text.

        Raises:
            InvalidRequest: the constraint cannot be read, or the model has no tokenizer that allows constraints.
        """
        vocabulary = self._vocabulary
        try:
            matcher = LLMatcher(vocabulary, _grammar(constraint), log_level=0)
        except ValueError as error:
            raise _unreadable(constraint, str(error)) from error
        if matcher.is_error():
            raise _unreadable(constraint, matcher.get_error())
        return ConstrainedText(matcher, prompt_len, self._vocab_size, self._eos_ids)

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
        from llguidance.hf import from_tokenizer

        self.check_tokenizer()
        try:
            return from_tokenizer(self._tokenizer, n_vocab=self._vocab_size, eos_token=sorted(self._eos_ids))
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

        `tokens` is the whole text, which only grows from call to call. Raises RuntimeError where the matcher meets a
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
            raise RuntimeError(f"the output cannot be constrained further: {self._matcher.get_error()}")
        return np.unpackbits(bits, bitorder="little")[: self._vocab_size].astype(np.bool_)


def check_constraint(constraint: Constraint) -> None:
    """Refuse a constraint that cannot be read, whatever the model. Raises InvalidRequest."""
    try:
        why = LLMatcher.validate_grammar(_grammar(constraint))
    except ValueError as error:
        raise _unreadable(constraint, str(error)) from error
    if why:
        raise _unreadable(constraint, why)


def _grammar(constraint: Constraint) -> str:
    if constraint.kind == "json_schema":
        json.loads(constraint.text)
        return LLMatcher.grammar_from_json_schema(constraint.text, defaults=_LAYOUT)  # type: ignore[arg-type]
    if constraint.kind == "regex":
        return LLMatcher.grammar_from_regex(constraint.text)
    return LLMatcher.grammar_from_lark(constraint.text)


def _unreadable(constraint: Constraint, why: str) -> InvalidRequest:
    lines = [line.strip() for line in why.splitlines()]
    said = next((line for line in lines if line.startswith("error: ")), lines[0] if lines else "unreadable")
    return InvalidRequest(
        f"The {constraint.kind.replace('_', ' ')} of the output cannot be used: {said.removeprefix('error: ')}.",
        hint="Correct it, or ask without a constraint.",
        param="structured_outputs",
    )
