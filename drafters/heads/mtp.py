"""MTP, the layer for several tokens that models such as DeepSeek-V3 (arXiv 2412.19437, section 2.2) ship beside them.

A decoder layer over the projection of two normed parts, the token's embedding and the state before it, which is the
target's last layer's and, below a guess, its own; as FastMTP (arXiv 2509.18362) goes on with one layer for all guesses.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from drafters.heads.eagle import EagleLike
from drafters.heads.head import WINDOW, HeadConfig, configured, layer_config, member
from drafters.heads.layers import RMSNorm
from drafters.protocols import Target


@member
class Mtp(EagleLike):
    """One layer, under the names of the *speculators* format."""

    name = "mtp"

    def __init__(self, config: HeadConfig, target: Target) -> None:
        super().__init__(config, target)
        self.passes = config.depth
        size, epsilon, layer = self.hidden_size, self.layer_config.rms_norm_eps, self.layers[0]
        layer.token_layernorm, layer.hidden_layernorm = RMSNorm(size, epsilon), RMSNorm(size, epsilon)
        layer.input_proj = nn.Linear(2 * size, size, bias=False)
        layer.final_layernorm = RMSNorm(size, epsilon)

    @classmethod
    def configure(
        cls, target: Target, depth: int = 3, window: int = WINDOW, intermediate: int = 0, draft_vocab: int = 0
    ) -> HeadConfig:
        layer = layer_config(target, 1, intermediate, "qwen3")
        return configured(cls.name, target, (target.num_layers,), depth, window, layer, draft_vocab)

    def features(self, states: Tensor) -> Tensor:
        return states[..., 0, :]

    def enter(self, features: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        layer = self.layers[0]
        x = layer.input_proj(torch.cat((layer.token_layernorm(embedded), layer.hidden_layernorm(features)), -1))
        return x, layer.input_layernorm(x)

    def leave(self, own: Tensor) -> Tensor:
        return self.layers[0].final_layernorm(own)  # type: ignore[no-any-return]

    def logits(self, own: Tensor) -> Tensor:
        return self.lm_head(own)  # type: ignore[no-any-return]
