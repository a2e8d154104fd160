"""EAGLE-3 (arXiv 2503.01840): EAGLE over the fused states of several layers, learning tokens alone.

At training it runs on its own states as it will when it drafts ("training-time test"): of pass k, row i attends to the
first pass up to i and to itself in the passes between.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from drafters.heads.eagle import EagleLike
from drafters.heads.head import WINDOW, HeadConfig, configured, layer_config, member, spread
from drafters.heads.layers import RMSNorm
from drafters.protocols import Target


@member
class Eagle3(EagleLike):
    """Several layers fused, tokens alone learned, trained on its own states.

    The options are those of the *speculators* format: norms before the fusion, whether the residual is normalised, and
    whether what it goes on from is.
    """

    name = "eagle3"

    def __init__(self, config: HeadConfig, target: Target) -> None:
        super().__init__(config, target, inputs=2)
        self.passes = config.depth
        size, count, epsilon = self.hidden_size, len(config.reads), self.layer_config.rms_norm_eps
        options = config.options
        self.fc = nn.Linear(count * size, size, bias=False)
        self.layers[0].hidden_norm = RMSNorm(size, epsilon)
        self.norm = RMSNorm(size, epsilon)
        self.input_norm = RMSNorm(count * size, epsilon) if options["norm_before_fc"] else None
        self.fc_norm = nn.ModuleList(RMSNorm(size, epsilon) for _ in range(count)) if options["fc_norm"] else None

    @classmethod
    def configure(
        cls,
        target: Target,
        depth: int = 4,
        window: int = WINDOW,
        layers: int = 1,
        reads: tuple[int, ...] = (),
        intermediate: int = 0,
        draft_vocab: int = 0,
    ) -> HeadConfig:
        layer = layer_config(target, layers, intermediate)
        own = eagle3_options(fc_norm=True)  # what a layer passes on grows from layer to layer
        return configured(cls.name, target, reads or spread(target), depth, window, layer, draft_vocab, **own)

    def features(self, states: Tensor) -> Tensor:
        if self.fc_norm is not None:
            states = torch.stack([norm(states[..., i, :]) for i, norm in enumerate(self.fc_norm)], -2)
        fused = states.flatten(-2)
        return self.fc(fused if self.input_norm is None else self.input_norm(fused))  # type: ignore[no-any-return]

    def enter(self, features: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        layer = self.layers[0]
        hidden = layer.hidden_norm(features)
        residual = hidden if self.config.options["norm_before_residual"] else features
        return residual, torch.cat((layer.input_layernorm(embedded), hidden), -1)

    def leave(self, own: Tensor) -> Tensor:
        return self.norm(own) if self.config.options["norm_output"] else own  # type: ignore[no-any-return]

    def logits(self, own: Tensor) -> Tensor:
        normed = own if self.config.options["norm_output"] else self.norm(own)
        return self.lm_head(normed)  # type: ignore[no-any-return]


def eagle3_options(**given: bool) -> dict[str, bool]:
    """The options of `eagle3`, all of them; those that are not given are off."""
    names = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
    return {name: bool(given.get(name, False)) for name in names}
