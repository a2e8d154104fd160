"""Kangaroo (arXiv 2404.18911): the target's own first layers and a small adapter are the drafter.

The adapter, attention between two norms, goes on from what the first layers make of a token; the target's output matrix
then guesses. For what it guesses the first layers are run over the request's own KV, so that nothing is read twice. The
paper's second early exit, to stop once a guess is unsure, is `models.best_first`'s (`min_score`, `stop`). Here the
verification runs the first layers again, which the paper spares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from drafters.errors import DrafterError
from drafters.heads.growing import KV, GrowingHead, RootedContext, joined
from drafters.heads.head import WINDOW, Context, Guess, HeadConfig, Shallow, configured, layer_config, member
from drafters.heads.layers import Attention, RMSNorm, Rotary, causal, transformer_config
from drafters.protocols import Target


@member
class Kangaroo(GrowingHead):
    """Goes on from the states after the first `exit` layers."""

    name = "kangaroo"

    def __init__(self, config: HeadConfig, target: Target) -> None:
        super().__init__(config, target)
        layer = transformer_config(config.layer)
        self.exit = config.options["exit"]
        self.input_norm = RMSNorm(self.hidden_size, layer.rms_norm_eps)
        self.self_attn = Attention(layer)
        self.norm = RMSNorm(self.hidden_size, layer.rms_norm_eps)
        self.rotary = Rotary(layer)

    @classmethod
    def configure(
        cls, target: Target, depth: int = 4, window: int = WINDOW, exit: int = 2, draft_vocab: int = 0
    ) -> HeadConfig:
        return configured(cls.name, target, (exit,), depth, window, layer_config(target, 1), draft_vocab, exit=exit)

    def features(self, states: Tensor) -> Tensor:
        return states[..., 0, :]

    def run(
        self, features: Tensor, tokens: Tensor, positions: Tensor, before: Sequence[KV], mask: Tensor
    ) -> tuple[Tensor, list[KV]]:
        angles, x = self.rotary(positions), self.input_norm(features)
        new = [self.self_attn.keys_values(x, angles)]
        [seen] = joined(before, new)
        return features + self.self_attn.attend(self.self_attn.queries(x, angles), *seen, mask), new

    def logits(self, own: Tensor) -> Tensor:
        return self.lm_head(self.norm(own))  # type: ignore[no-any-return]

    def guesses(self, states: Tensor, tokens: Tensor, generator: torch.Generator) -> Iterator[Guess]:
        features, length = self.features(states), tokens.shape[1]
        angles = self.rotary(torch.arange(length, device=tokens.device))
        x = self.input_norm(features)
        mask = causal(length, 0, self.config.window, tokens.device)
        attended = self.self_attn.attend(
            self.self_attn.queries(x, angles), *self.self_attn.keys_values(x, angles), mask
        )
        logits = self.logits(features + attended)
        for k in range(1, (1 if self.training else self.config.depth) + 1):
            yield Guess(logits[:, k:], torch.arange(length - k))

    def begin(self, shallow: Shallow | None = None) -> Context:
        if shallow is None:
            raise DrafterError("the trained drafter kangaroo needs an engine that runs the target's first layers")
        return RootedContext(self, shallow)
