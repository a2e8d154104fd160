"""LANTERN (arXiv 2410.03355): image tokens whose codes lie near one another may stand for one another. Lossy.

Image models spread a row's probability over many like tokens, so that a guess is seldom the one. Here a guess is judged
by what it and its nearest codes have together: the target p is replaced by one in which the guess has taken the mass of
so many of its k nearest codes, nearest first, as moves no more than `bound` of p in all (a total variation). With bound
0, or without neighbours, it is plain rejection sampling.

The bound holds for each of these replacements, not for what comes out: which one is used depends on the guess, so where
each guess takes a little the sum may be much more (`tests/drafters/research/test_lantern.py` has a bound of 1/V whose
output is 1/2 away). `output` says how far, for a small vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drafters.research.multi_round import Selection


def nearest(codes: Tensor, count: int) -> Tensor:
    """Of each of the codes [V, d] the `count` nearest others, nearest first: int64 [V, count]."""
    distances = torch.cdist(codes, codes)
    distances.fill_diagonal_(-1)  # itself comes first
    return distances.argsort(dim=1, stable=True)[:, 1 : count + 1]


def relaxed(p: Tensor, guess: int, near: Tensor, bound: float) -> Tensor:
    """The target p float64 [V] with the mass of codes that stand for `guess` moved to it; `near` int64 [V, k]."""
    moved = p[near[guess]].cumsum(0)
    taken = near[guess][moved <= bound]
    out = p.clone()
    out[taken] = 0
    out[guess] += p[taken].sum()
    return out


def lantern(p: Tensor, q: Tensor, guess: int, near: Tensor, bound: float) -> Selection:
    """How a guess drawn from q [V] is judged, and what is drawn where it is rejected; p [V] is the target."""
    out = relaxed(p, guess, near, bound)
    rest = (out - q).clamp(min=0)
    total = rest.sum()
    accept = (out[guess] / q[guess]).clamp(max=1) if q[guess] > 0 else torch.ones((), dtype=p.dtype)
    return Selection(accept[None], rest / total if total > 0 else out)


def output(p: Tensor, q: Tensor, near: Tensor, bound: float) -> tuple[Tensor, float]:
    """The distribution [V] that the rule gives in place of p, over all guesses; and how often one is accepted."""
    out, accepted = torch.zeros_like(p), 0.0
    for guess in q.nonzero()[:, 0].tolist():
        how = lantern(p, q, guess, near, bound)
        out[guess] += q[guess] * how.accept[0]
        out += q[guess] * (1 - how.accept[0]) * how.residual
        accepted += float(q[guess] * how.accept[0])
    return out, accepted
