"""Examples as token ids: a context with its questions and answers packed into one sequence."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eval.reader.data import NOWHERE, Example
from service.reader.tokenizer import ANSWER, BOS, END, NONE, NOT_STATED, QUESTION, REFERENCES, reference

COPIED = 4
"""Tokens of an answer that are trained on in most branches; the share `WHOLE` is copied to its end."""
WHOLE = 0.15


@dataclass(frozen=True, slots=True)
class Batch:
    """One context with its branches, packed into one sequence of T tokens.

    Attributes:
        ids: int64[T].
        positions: int64[T].
        branch: int64[T]: 0 in the context, else the number of the branch.
        rows: int64[N]: tokens whose successor is learnt.
        targets: int64[N]: the successors.
        is_reference: bool[N]: which of them are references.
    """

    ids: Tensor
    positions: Tensor
    branch: Tensor
    rows: Tensor
    targets: Tensor
    is_reference: Tensor

    def mask(self) -> Tensor:
        """bool[1, 1, T, T]: causal, branches apart."""
        order = torch.arange(len(self.ids))
        causal = order[None, :] <= order[:, None]
        apart = (self.branch[None, :] == 0) | (self.branch[None, :] == self.branch[:, None])
        return (causal & apart)[None, None]


class Packer:
    """Turns examples into batches with references drawn at random."""

    def __init__(self, tokenizer: Any) -> None:
        ids = tokenizer.convert_tokens_to_ids
        self.tokenizer = tokenizer
        self.bos, self.end, self.none, self.question, self.answer = map(ids, (BOS, END, NONE, QUESTION, ANSWER))
        self.references = [ids(reference(i)) for i in range(REFERENCES)]
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Ids of a text as a layout gives it, behind a space."""
        found = self._known.get(text)
        if found is None:
            found = self._known[text] = self._ids(text)
        return found

    def length(self, text: str) -> int:
        """Tokens of a sentence in a prompt."""
        return len(self.encode(text)) + 2

    def context(self, sentences: Sequence[str], references: Sequence[int]) -> list[int]:
        """Ids of the prompt up to its question."""
        ids = [self.bos, self.none, *self.encode(NOT_STATED), self.end]
        for token, text in zip(references, sentences, strict=True):
            ids += [token, *self.encode(text), self.end]
        return ids

    def pack(self, example: Example, rng: random.Random) -> Batch:
        """The batch of an example; needs no more sentences than there are references."""
        references = rng.sample(self.references, len(example.sentences))
        ids = self.context(example.sentences, references)
        start = rng.randrange(4096)
        positions = list(range(start, start + len(ids)))
        length = len(ids)
        branch = [0] * length
        rows: list[int] = []
        targets: list[int] = []
        is_reference: list[bool] = []
        for number, question in enumerate(example.questions, start=1):
            asked = [self.question, *self._ids(question.text), self.answer]
            said = self.answer_ids(example, references, question.answer)
            kept = len(said) if rng.random() < WHOLE else min(len(said), COPIED)
            rows += range(len(ids) + len(asked) - 1, len(ids) + len(asked) + kept - 1)
            targets += said[:kept]
            is_reference += [True] + [False] * (kept - 1)
            tail = asked + said[: kept - 1]
            positions += range(start + length, start + length + len(tail))
            branch += [number] * len(tail)
            ids += tail
        return Batch(*map(torch.tensor, (ids, positions, branch, rows, targets, is_reference)))

    def answer_ids(self, example: Example, references: Sequence[int], answer: int) -> list[int]:
        """What the reader should say: reference, words, end."""
        if answer == NOWHERE:
            return [self.none, *self.encode(NOT_STATED), self.end]
        return [references[answer], *self.encode(example.sentences[answer]), self.end]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(" " + text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
