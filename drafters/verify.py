"""Keyed verification: walk the tree for as long as it agrees with the target's own choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drafters.tree import DraftTree

NO_TOKEN = -1
"""What is chosen after a row from which nothing can be: it holds NaN, or no finite number."""


@dataclass(frozen=True)
class Verdict:
    """What a step emits.

    path    the accepted nodes, from a child of the root downwards (their KV, after the root's, is kept)
    tokens  the accepted tokens and the bonus token after them: len(path) + 1 of them
    """

    path: tuple[int, ...]
    tokens: tuple[int, ...]

    @property
    def rows(self) -> list[int]:
        """The rows of the forward behind which the tokens were chosen: the root's and those of the path."""
        return [0, *(node + 1 for node in self.path)]


def verify(tree: DraftTree, choices: Sequence[int]) -> Verdict:
    """Accept the children that equal the target's choices.

    choices[i] is the token the target chooses after row i (`sampling.choose`; row 0 is the root, row i + 1
    node i).
    A choice depends on its path and position alone, so the emitted tokens are those of plain decoding
    whatever the tree holds. The empty tree is plain decoding.
    """
    path: list[int] = []
    tokens = [int(choices[0])]
    reached = -1
    # one pass: a parent precedes its children
    for node, (parent, token) in enumerate(zip(tree.parents.tolist(), tree.tokens.tolist(), strict=True)):
        if parent == reached and token == tokens[-1]:
            reached = node
            path.append(node)
            tokens.append(int(choices[node + 1]))
    return Verdict(tuple(path), tuple(tokens))
