"""Lossy ways of accepting guesses that are not the target's choices; what all of them share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from drafters.base import RequestState
from drafters.models.trained import Trained
from drafters.sampling.choice import choose, warp
from drafters.tree import DraftTree
from drafters.verify import Verdict


class Lenient(Trained):
    """The drafter `trained`, verified leniently.

    A guess is kept that is the target's keyed choice, or that `keeps` finds good enough; of the paths that are kept the
    longest wins, of equals the most probable. Behind it comes the target's keyed choice. No distribution is declared:
    which of the tokens that are good enough comes depends on what was guessed.
    """

    lossy = True

    def __init__(self, *how: Any) -> None:
        super().__init__(*how)

    @abstractmethod
    def keeps(self, log_p: Tensor, parents: Tensor, tokens: Tensor) -> Sequence[bool]:
        """Which nodes are good enough: log_p float64 [n + 1, V] is the target's after each row, `parents` int64 [n] the
        rows that `tokens` int64 [n] hang below."""

    def verify(self, state: RequestState, tree: DraftTree, logits: Tensor, keyed: Verdict) -> Verdict:
        how, positions = state.sampling, torch.as_tensor(state.next_position + tree.depths)
        log_p = warp(logits, how.temperature, how.top_k, how.top_p).cpu()
        seeds = torch.full_like(positions, how.seed)
        chosen = choose(logits, how.temperature, how.top_k, how.top_p, seeds, positions).tolist()
        rows, tokens = torch.as_tensor(tree.parents + 1), torch.as_tensor(tree.tokens)
        good, own = self.keeps(log_p, rows, tokens), log_p[rows, tokens].tolist()
        best = -1
        reached = [(0, 0.0)]  # by row: nodes of the path there, and their log probability; none where it is not kept
        for node, parent in enumerate(tree.parents.tolist()):
            length, score = reached[parent + 1]
            kept = (length or parent < 0) and (good[node] or tree.tokens[node] == chosen[parent + 1])
            reached.append((length + 1, score + own[node]) if kept else (0, -torch.inf))
            best = node if reached[node + 1] > reached[best + 1] else best
        path = tree.path_to(best)
        return Verdict(tuple(path), (*(int(tree.tokens[node]) for node in path), chosen[best + 1]))
