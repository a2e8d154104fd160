"""Logits changed by request and by the text so far: a bias for tokens, penalties for repetition, min-p.

Every row of a tree is changed by the text of its own path, so that a choice still depends on the text before it alone
and drafting stays lossless. They are applied in this order, which is vLLM's, and before temperature, top-k and top-p.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drafters.tree import DraftTree


@dataclass(frozen=True)
class Penalties:
    """What a request asks for; the defaults change nothing.

    bias        pairs of a token id and what is added to its logit
    repetition  a positive logit of a token that prompt or answer hold is divided by it, a negative one multiplied
                (CTRL, arXiv 1909.05858, section 4.1)
    frequency   taken off a token's logit for each time that the answer holds it
    presence    taken off once if the answer holds it
    min_p       tokens of less than this share of the likeliest one's probability are never chosen (arXiv 2407.01082);
                without effect on greedy choices
    """

    bias: tuple[tuple[int, float], ...] = ()
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    min_p: float = 0.0

    @property
    def repeated(self) -> bool:
        """Whether any of them asks what the text holds."""
        return self.repetition != 1 or self.frequency != 0 or self.presence != 0


class PenalisedText:
    """The tokens that one request's text holds, and its logits changed by them."""

    def __init__(self, penalties: Penalties, prompt: Sequence[int], temperature: float, vocab_size: int) -> None:
        self._penalties = penalties
        self._temperature = temperature
        self._counted = len(prompt)
        self._times = np.zeros(vocab_size, dtype=np.int64)  # in the answer
        self._held = np.zeros(vocab_size, dtype=np.bool_)  # in prompt or answer
        self._held[np.asarray(prompt)] = True

    def adjust(self, logits: Tensor, tokens: Sequence[int], tree: DraftTree) -> Tensor:
        """Logits [n + 1, V] behind the text's last token and the tree's nodes -> those that are chosen from, a copy.

        logits of a float dtype of 32 bits or more; `tokens` is the whole text, which only grows from call to call.
        """
        wanted = self._penalties
        logits = logits.clone()
        if wanted.bias:
            ids, values = zip(*wanted.bias, strict=True)
            logits[:, list(ids)] += torch.tensor(values, dtype=logits.dtype, device=logits.device)
        if wanted.repeated:
            self._count(tokens)
            self._penalise(logits, tree)
        if wanted.min_p and self._temperature:
            # p / p_max >= min_p, said of logits
            least = logits.amax(-1, keepdim=True) + self._temperature * math.log(wanted.min_p)
            logits.masked_fill_(logits < least, -math.inf)
        return logits

    def _count(self, tokens: Sequence[int]) -> None:
        new = np.asarray(tokens[self._counted :], dtype=np.int64)
        np.add.at(self._times, new, 1)
        self._held[new] = True
        self._counted = len(tokens)

    def _penalise(self, logits: Tensor, tree: DraftTree) -> None:
        touched = self._held.copy() if self._penalties.repetition != 1 else self._times > 0
        touched[tree.tokens] = True
        ids = np.flatnonzero(touched)
        on_path = np.zeros((len(tree) + 1, len(ids)), dtype=np.int64)
        columns = np.searchsorted(ids, tree.tokens)
        for node, column in enumerate(columns):
            on_path[:, column] += tree.ancestor_mask[:, node + 1]
        where = torch.from_numpy(ids).to(logits.device)
        times = torch.from_numpy(self._times[ids] + on_path).to(logits.device)
        held = torch.from_numpy(self._held[ids] | (on_path > 0)).to(logits.device)
        part = logits[:, where]
        by = self._penalties.repetition
        part = torch.where(held, torch.where(part > 0, part / by, part * by), part)
        logits[:, where] = part - self._penalties.frequency * times - self._penalties.presence * (times > 0)
