"""Prompt tokens that ride in the verification of a tree (PPD, arXiv 2405.18628, its dynamic sparse tree).

Where the verification will end is not known when it begins: chains of prompt tokens hang below the root and the nodes
of the tree, and those below the row that it ended at guess the next tree. Every one of them is a row of the forward.
Which are worth it the measured times of this machine decide: prompt token k below a row brings the chance that the walk
ends there, times the chance that the first k guesses will be right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from drafters.base import RequestState
from drafters.combine.goodput import best_budget
from drafters.heads.head import Head
from drafters.machine_profile import MachineProfile
from drafters.tree import EMPTY, DraftTree
from drafters.verify import Verdict

_RIGHT, _WEIGHT = 0.5, 0.1  # of a first guess, before any was seen; of the newest step in the running means


class Riders:
    """The prompt tokens of one request, and what was seen of them. To a head's session they are a
    `ShallowSession`, which shows what the verification has run already."""

    def __init__(self, head: Head, profile: MachineProfile) -> None:
        self.depth = head.config.depth
        self._first = len(head.t2d)  # id of the first one
        self._whole = head.mutual  # a chain runs whole, or not
        self._profile = profile
        self._right = _RIGHT ** np.arange(1, self.depth + 1)  # how often the first k guesses are right
        self._hung: DraftTree = EMPTY
        self._states: Tensor | None = None  # of the rows of the step
        self._seen = torch.empty(0, head.hidden_size)
        self._place = -1  # of the token in the text that these hang below

    def worth(self, state: RequestState, tree: DraftTree, room: int) -> int:
        """How many nodes of `tree` are worth a row, of `room` that they share with the prompt tokens below them."""
        values = np.concatenate((tree.scores, self._gains(tree).ravel()))
        if self._profile.ready:
            times = self._profile.step_times(state.batch_size, len(state.tokens), len(values))
            room = min(room, best_budget(values, times)[0])
        best = np.argsort(-values, kind="stable")[:room]
        return int((best < len(tree)).sum())

    def hang(self, state: RequestState, tree: DraftTree, room: int) -> DraftTree:
        """Chains below the root (-1) and the nodes of `tree`, at most `room` prompt tokens, numbered on from its nodes;
        one chain at least where there is room."""
        gains = self._gains(tree)
        count = self.depth
        if self._profile.ready:
            times = self._profile.step_times(state.batch_size, len(state.tokens), len(tree) + gains.size)
            count = max(count, best_budget(gains.ravel() / (1 + tree.scores.sum()), times[len(tree) :])[0])
        count = min(count, room)
        if self._whole:
            count -= count % self.depth
        chosen = np.zeros(gains.size, dtype=bool)
        chosen[np.argsort(-gains, axis=None, kind="stable")[:count]] = True
        lengths = chosen.reshape(gains.shape).sum(1)  # along a chain gains fall: its first ones are chosen
        tokens: list[int] = []
        parents: list[int] = []
        for row, length in enumerate(lengths.tolist()):
            behind = len(tree) + len(tokens)
            tokens += range(self._first, self._first + length)
            parents += [row - 1, *range(behind, behind + length - 1)][:length]
        self._hung, self._states = DraftTree.of(tokens, parents), None
        return self._hung

    def _gains(self, tree: DraftTree) -> np.ndarray:
        """Tokens [n + 1, depth] that prompt tokens below the rows of a tree are expected to bring."""
        ends = np.concatenate(([1.0], tree.scores))  # the chance that the walk ends at a row: less where it goes on
        np.subtract.at(ends, tree.parents + 1, tree.scores)
        gains: np.ndarray = np.outer(ends.clip(0), self._right)
        if self._whole:
            gains[:] = gains.mean(1, keepdims=True)
        return gains

    def look(self, states: Tensor) -> None:
        """The target's states [rows, layers, hidden] of a step: root, nodes and prompt tokens."""
        self._states = states

    def observe(self, state: RequestState, tree: DraftTree, verdict: Verdict) -> None:
        """Keep what was seen below the row that the walk ended at, and learn how far guesses are right."""
        at = verdict.path[-1] if verdict.path else -1
        rows = []
        for node, parent in enumerate(self._hung.parents.tolist(), len(tree)):
            if parent == at:
                rows.append(1 + node)
                at = node
        self._seen = self._seen[:0] if self._states is None else self._states[rows, 0].float()
        self._hung, self._states = EMPTY, None  # the coming step may have no room for any
        self._place = len(state.tokens) - 2
        guessed = np.arange(1, self.depth + 1) <= tree.depths.max()
        right = np.arange(1, self.depth + 1) <= len(verdict.path)
        self._right[guessed] += _WEIGHT * (right - self._right)[guessed]
        self._right = np.minimum.accumulate(self._right)

    def reach(self, state: RequestState) -> int:
        """How many guesses there are for the coming step."""
        return len(self._seen) if self._place == len(state.tokens) - 2 else 0

    def shallow(self, tokens: Sequence[int], parents: Sequence[int], layers: int) -> Tensor:
        """As `ShallowSession.shallow`: the states of the prompt tokens that were run."""
        return self._seen

    def rollback(self) -> None: ...

    def close(self) -> None: ...
