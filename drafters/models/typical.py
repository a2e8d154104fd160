"""Typical acceptance (Medusa, arXiv 2401.10774, section 2.3.1), lossy: a guess need only be typical of the target.

It is where its probability is above min(eps, sqrt(eps) · exp(-H)), H being the entropy of the target's distribution:
where the target is sure, few tokens are typical, where it is not, many. Greedily one token has probability 1, and
answers are those of plain decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from drafters.models.lenient import Lenient


def typical(log_p: Tensor, epsilon: float) -> Tensor:
    """The log probability [n, 1] above which a token is typical of log_p [n, V]."""
    entropy = -torch.where(log_p > -torch.inf, log_p.exp() * log_p, 0).sum(-1, keepdim=True)
    bound = torch.tensor(epsilon, dtype=log_p.dtype).log()
    return torch.minimum(bound, bound / 2 - entropy)


class Typical(Lenient):
    """The drafter `trained` with typical > 0."""

    name = "trained:typical"

    def __init__(self, *how: Any, epsilon: float) -> None:
        super().__init__(*how)
        self._epsilon = epsilon

    def keeps(self, log_p: Tensor, parents: Tensor, tokens: Tensor) -> Sequence[bool]:
        good: list[bool] = (log_p[parents, tokens] > typical(log_p, self._epsilon)[parents, 0]).tolist()
        return good
