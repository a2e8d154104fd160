"""Contexts of heads that need no forward for a node: all guesses are made at once, or each is a small step from the
one before."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from drafters.heads.head import Context


class RowsContext(Context):
    """All guesses at once, whatever the tree: `rows` makes their logits [depth, draft vocabulary] of the pairs."""

    def __init__(self, rows: Callable[[Tensor, Tensor, int], Tensor]) -> None:
        self._make = rows
        self._rows = torch.empty(0)
        self._depths: list[int] = []

    def follow(self, states: Tensor, tokens: Tensor, first: int) -> Tensor:
        self._rows, self._depths = self._make(states, tokens, first), []
        return self._rows[:1]

    def expand(self, tokens: Tensor, parents: Sequence[int]) -> Tensor:
        self._depths += depths_below(parents, self._depths)
        depths = self._depths[-len(parents) :]
        return self._rows[depths]

    def drop(self) -> None:
        self._depths = []


def depths_below(parents: Sequence[int], known: Sequence[int]) -> list[int]:
    """Depths of nodes that are added to those of depths `known`; a child of the root has depth 1."""
    depths = list(known)
    for parent in parents:
        depths.append(1 if parent < 0 else depths[parent] + 1)
    return depths[len(known) :]


class PathContext(Context):
    """A guess depends on the tokens guessed before it: `step` makes logits [n, draft vocabulary] of the last pair's
    states, of the embedded tokens of each node's path from the root on, [n, depth + 1, hidden], at one depth."""

    def __init__(self, embed: Callable[[Tensor], Tensor], step: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._embed, self._step = embed, step
        self._states = torch.empty(0)
        self._root = torch.empty(0)
        self._paths: list[Tensor] = []  # of nodes, [depth + 1, hidden]

    def follow(self, states: Tensor, tokens: Tensor, first: int) -> Tensor:
        self._states, self._root = states[-1:], self._embed(tokens[-1:])
        self._paths = []
        return self._step(self._states, self._root[None])

    def expand(self, tokens: Tensor, parents: Sequence[int]) -> Tensor:
        embedded = self._embed(tokens)
        for own, parent in zip(embedded, parents, strict=True):
            before = self._root if parent < 0 else self._paths[parent]
            self._paths.append(torch.cat((before, own[None])))
        new = self._paths[-len(parents) :]
        by_depth: dict[int, list[int]] = {}
        for place, path in enumerate(new):
            by_depth.setdefault(len(path), []).append(place)
        out: Tensor | None = None
        for places in by_depth.values():
            logits = self._step(self._states, torch.stack([new[place] for place in places]))
            out = logits.new_empty(len(new), logits.shape[-1]) if out is None else out
            out[places] = logits
        assert out is not None
        return out

    def drop(self) -> None:
        self._paths = []
