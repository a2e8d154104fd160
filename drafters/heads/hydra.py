"""Hydra (arXiv 2402.05109): Medusa's heads, each told of the tokens guessed before it.

Head k reads the target's last state and the embeddings of the root and of the k - 1 guesses before it, side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drafters.heads.head import LAST, Context, Guess, Head, HeadConfig, Shallow, configured, member
from drafters.heads.medusa import Projection, ResidualBlock
from drafters.heads.rows import PathContext
from drafters.protocols import Target


class HydraHead(nn.Module):
    """state + SiLU(W [state, tokens]), then residual blocks and a projection."""

    def __init__(self, size: int, tokens: int, blocks: int) -> None:
        super().__init__()
        self.joined = nn.Linear((1 + tokens) * size, size)
        self.blocks = nn.Sequential(*(ResidualBlock(size) for _ in range(blocks)), Projection(size))

    def forward(self, last: Tensor, tokens: Tensor) -> Tensor:
        """[..., hidden] of the state [..., hidden] and the embedded tokens [..., k, hidden]."""
        joined = torch.cat((last, tokens.flatten(-2)), -1)
        out: Tensor = self.blocks(last + F.silu(self.joined(joined)))
        return out


@member
class Hydra(Head):
    """Heads 1 to `depth`."""

    name = "hydra"

    def __init__(self, config: HeadConfig, target: Target) -> None:
        super().__init__(config, target)
        self.heads: Any = nn.ModuleList(
            HydraHead(self.hidden_size, k, config.options["blocks"]) for k in range(1, config.depth + 1)
        )

    @classmethod
    def configure(cls, target: Target, depth: int = 4, blocks: int = 1, draft_vocab: int = 0) -> HeadConfig:
        return configured(cls.name, target, (LAST,), depth, 1, draft_vocab=draft_vocab, blocks=blocks)

    def guesses(self, states: Tensor, tokens: Tensor, generator: torch.Generator) -> Iterator[Guess]:
        last, embedded = states[:, :, 0], self.embed(tokens)
        for k, head in enumerate(self.heads, 1):
            at = torch.arange(tokens.shape[1] - k)
            before = torch.stack([embedded[:, at + j] for j in range(1, k + 1)], 2)
            yield Guess(self.lm_head(head(last[:, at], before)), at)

    def begin(self, shallow: Shallow | None = None) -> Context:
        return PathContext(self.embed, self._step)

    def _step(self, states: Tensor, paths: Tensor) -> Tensor:
        """One guess below each path, all of one length."""
        head = self.heads[paths.shape[1] - 1]
        return self.lm_head(head(states[:, 0].expand(len(paths), -1), paths))  # type: ignore[no-any-return]
