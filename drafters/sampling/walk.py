"""The keyed walk straight from the logits: tokens are chosen only after the rows that it reaches."""

from __future__ import annotations

from torch import Tensor

from drafters.sampling.choice import exact
from drafters.sampling.perturbed import walk_perturbed
from drafters.tree import DraftTree
from drafters.verify import Verdict


def walk(logits: Tensor, tree: DraftTree, temperature: float, seed: int, position: int) -> Verdict:
    """The verdict of `verify.verify` on what `choice.choose` chooses after every row.

    logits [n + 1, V] on a CPU; neither top-k nor top-p; `position` is that of the token after the root.
    """
    path, tokens = walk_perturbed(exact(logits), tree.tokens, tree.parents, temperature, seed, position)
    return Verdict(tuple(path.tolist()), tuple(tokens.tolist()))
