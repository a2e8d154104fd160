"""Medusa-1 (arXiv 2401.10774): guesses that do not know of one another, each from the target's last state.

Head k is a residual block over the state that the target's own logits are made of. The paper gives every head an output
matrix of its own, which begins as the target's; here it is the target's behind a small matrix. That begins as zero, so
that a head begins by guessing nothing in particular: as the identity it would be sure of the token before, which takes
long to unlearn.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drafters.heads.head import LAST, Context, Guess, Head, HeadConfig, Shallow, configured, member
from drafters.heads.rows import RowsContext
from drafters.protocols import Target


class ResidualBlock(nn.Module):
    """x + SiLU(W x + b); W begins as nothing, so that the block begins as the identity."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.silu(self.linear(x))


class Projection(nn.Linear):
    """A matrix before the target's output matrix, which makes it the head's own; it begins as zero."""

    def __init__(self, size: int) -> None:
        super().__init__(size, size, bias=False)
        nn.init.zeros_(self.weight)


@member
class Medusa(Head):
    """Heads 1 to `depth`, each of `blocks` residual blocks and a projection."""

    name = "medusa"
    costly = False

    def __init__(self, config: HeadConfig, target: Target) -> None:
        super().__init__(config, target)
        blocks = config.options["blocks"]
        self.heads: Any = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(self.hidden_size) for _ in range(blocks)), Projection(self.hidden_size))
            for _ in range(config.depth)
        )

    @classmethod
    def configure(cls, target: Target, depth: int = 4, blocks: int = 1, draft_vocab: int = 0) -> HeadConfig:
        return configured(cls.name, target, (LAST,), depth, 1, draft_vocab=draft_vocab, blocks=blocks)

    def guesses(self, states: Tensor, tokens: Tensor, generator: torch.Generator) -> Iterator[Guess]:
        last = states[:, :, 0]
        for k, head in enumerate(self.heads, 1):
            at = torch.arange(tokens.shape[1] - k)
            yield Guess(self.lm_head(head(last[:, at])), at)

    def begin(self, shallow: Shallow | None = None) -> Context:
        return RowsContext(self._rows)

    def _rows(self, states: Tensor, tokens: Tensor, first: int) -> Tensor:
        last = states[-1:, 0]
        return self.lm_head(torch.cat([head(last) for head in self.heads]))  # type: ignore[no-any-return]
