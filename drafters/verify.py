"""Keyed verification: walk the tree for as long as it agrees with the target's own choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drafters.tree import DraftTree


@dataclass(frozen=True)
class Verdict:
    """What a step emits.

    path    the accepted nodes, from a child of the root downwards (their KV, after the root's, is kept)
    tokens  the accepted tokens and the bonus token after them: len(path) + 1 of them
    """

    path: tuple[int, ...]
    tokens: tuple[int, ...]


def verify(tree: DraftTree, choices: Sequence[int]) -> Verdict:
    """Accept the children that equal the target's choices.

    choices[i] is the token the target chooses after row i (`sampling.choose`; row 0 is the root, row i + 1
    node i).
    A choice depends on its path and position alone, so the emitted tokens are those of plain decoding
    whatever the tree holds. The empty tree is plain decoding.
    """
    children = tree.children()
    path: list[int] = []
    tokens: list[int] = []
    node: int | None = -1
    while node is not None:
        token = int(choices[node + 1])
        tokens.append(token)
        node = children.get((node, token))
        if node is not None:
            path.append(node)
    return Verdict(tuple(path), tuple(tokens))
