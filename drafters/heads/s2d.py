"""S2D (arXiv 2407.01955): one draft of several layers, trained to be left behind any of them.

All exits learn at once ("sorted" training), by one output matrix. A node is guessed from the first exit that is sure
enough; layers that it skips keep keys and values of what it left with, for nodes below it. Here the draft is EAGLE's;
the paper's serves several targets, which one that reads a target's states cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from drafters.errors import DrafterError
from drafters.heads.eagle import Eagle
from drafters.heads.growing import KV, joined
from drafters.heads.head import HeadConfig, member
from drafters.heads.layers import distance
from drafters.protocols import Target


@member
class S2D(Eagle):
    """An exit after every layer, taken where the best guess is likelier than `sure` percent."""

    name = "s2d"

    @classmethod
    def configure(cls, target: Target, *given: Any, sure: int = 60, **options: Any) -> HeadConfig:
        config = super().configure(target, *given, **{"layers": 2, **options})
        if config.options["partial"]:
            raise DrafterError("the drafter s2d goes on from the state that it guesses by: leave partial out")
        config.options["sure"] = sure
        return config

    def own_loss(self, own: Tensor, features: Tensor, inner: Sequence[Tensor]) -> Tensor | None:
        with torch.no_grad():
            wanted = self.lm_head(features).float().softmax(-1)
        loss = distance(own, features)
        for left in inner:
            given = self.logits(left).float().log_softmax(-1)
            loss = loss - (wanted * given).sum(-1).mean() + distance(left, features)
        return loss

    def draft(
        self, features: Tensor, tokens: Tensor, positions: Tensor, before: Sequence[KV], mask: Tensor
    ) -> tuple[Tensor, list[KV]]:
        angles = self.rotary(positions)
        own, _ = self.enter(features, self.embed(tokens))
        going = torch.arange(len(tokens), device=tokens.device)  # rows that have not left
        kept: list[KV] = []
        for i, layer in enumerate(self.layers):
            x, attention = layer.input_layernorm(own), layer.self_attn
            kept.append(attention.keys_values(x, angles))
            if i and len(going):
                likeliest = self.logits(own[going]).softmax(-1).amax(-1)
                going = going[likeliest <= self.config.options["sure"] / 100]
            if len(going):
                keys, values = joined([before[i]], [kept[i]])[0]
                q = attention.queries(x[going], tuple(part[going] for part in angles))
                attended = attention.attend(q, keys, values, mask[going])
                own = own.index_copy(0, going, layer.after(own[going], attended))
        return own, kept
