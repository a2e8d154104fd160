"""EAGLE (arXiv 2401.15077): a decoder layer that goes on from the target's states, each beside the token after it.

`eagle` learns the target's last state itself, by which the target's own output matrix then guesses; the tree is grown
by confidence as EAGLE-2 does (arXiv 2406.16858), by `models.best_first`. `eagle3` (arXiv 2503.01840) fuses the states
of several layers, learns tokens alone, and at training runs on its own states as it will when it drafts ("training-time
test"): of pass k, row i attends to the first pass up to i and to itself in the passes between.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drafters.heads.growing import KV, GrowingHead
from drafters.heads.head import LAST, Guess, HeadConfig, described, layer_config, member
from drafters.heads.layers import Attention, DecoderLayer, RMSNorm, Rotary, causal, transformer_config
from drafters.protocols import Target

WINDOW = 256
"""Pairs that the layer looks back to; beyond what it was trained on its guesses collapse."""


class _Unrolled:
    """Attention over the passes of training: the first causally, the later ones by each row to itself."""

    def __init__(self, attention: Attention, window: int) -> None:
        self._attention, self._window = attention, window
        self._passes: list[KV] = []

    def __call__(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """[B, N, hidden] of x [B, N, width]; the next pass may have fewer rows, the first of these."""
        attention, count = self._attention, x.shape[1]
        q = attention.queries(x, angles)
        self._passes.append(attention.keys_values(x, angles))
        passes = [(k[:, :count], v[:, :count]) for k, v in self._passes]
        mask = causal(count, 0, self._window, x.device)
        if len(passes) == 1:
            return attention.attend(q, *passes[0], mask)
        (keys, values), later = passes[0], passes[1:]
        q = q.unflatten(2, (attention.kv_heads, -1)) / math.sqrt(attention.size)
        scores = [torch.einsum("btkgd,bskd->btkgs", q, keys).masked_fill(~mask[:, None, None], -math.inf)]
        scores += [torch.einsum("btkgd,btkd->btkg", q, k)[..., None] for k, _ in later]
        first, *rest = torch.cat(scores, -1).softmax(-1).split([count] + [1] * len(later), -1)
        out = torch.einsum("btkgs,bskd->btkgd", first, values)
        for weight, (_, v) in zip(rest, later, strict=True):
            out = out + weight * v[:, :, :, None]
        return attention.o_proj(out.flatten(2))  # type: ignore[no-any-return]


class EagleLike(GrowingHead):
    """Decoder layers over pairs of a state and an embedded token; the first reads both."""

    passes: int  # of training

    def __init__(self, config: HeadConfig, target: Target, inputs: int) -> None:
        super().__init__(config, target)
        self.layer_config = transformer_config(config.layer)
        count = self.layer_config.num_hidden_layers
        self.layers: Any = nn.ModuleList(DecoderLayer(self.layer_config, inputs if i == 0 else 1) for i in range(count))
        self.rotary = Rotary(self.layer_config)

    def enter(self, features: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """The residual and the input of the first layer's attention."""
        raise NotImplementedError

    def leave(self, own: Tensor) -> Tensor:
        """What of the layers' output is its own state."""
        return own

    def run(
        self, features: Tensor, tokens: Tensor, positions: Tensor, before: Sequence[KV], mask: Tensor
    ) -> tuple[Tensor, list[KV]]:
        angles = self.rotary(positions)
        residual, x = self.enter(features, self.embed(tokens))
        new = []
        for i, layer in enumerate(self.layers):
            if i:
                x = layer.input_layernorm(residual)
            attention = layer.self_attn
            new.append(attention.keys_values(x, angles))
            keys, values = new[i]
            if before:
                keys, values = torch.cat((before[i][0], keys)), torch.cat((before[i][1], values))
            attended = attention.attend(attention.queries(x, angles), keys, values, mask)
            residual = layer.after(residual, attended)
        return self.leave(residual), new

    def guesses(self, states: Tensor, tokens: Tensor, generator: torch.Generator) -> Iterator[Guess]:
        features, embedded = self.features(states), self.embed(tokens)
        memory = [_Unrolled(layer.self_attn, self.config.window) for layer in self.layers]
        own = features
        for k in range(1, (self.passes if self.training else self.config.depth) + 1):
            count = tokens.shape[1] - k
            residual, x = self.enter(own[:, :count], embedded[:, k : k + count])
            angles = self.rotary(torch.arange(k - 1, k - 1 + count, device=tokens.device))
            for i, (layer, attend) in enumerate(zip(self.layers, memory, strict=True)):
                residual = layer.after(residual, attend(x if i == 0 else layer.input_layernorm(residual), angles))
            own = self.leave(residual)
            yield Guess(self.logits(own), torch.arange(count), self.own_loss(own, features[:, k:]))

    def own_loss(self, own: Tensor, features: Tensor) -> Tensor | None:
        """What is learned besides tokens, of its own states [B, N, hidden] and the target's features at their place."""
        return None


@member
class Eagle(EagleLike):
    """Learns the target's last state, with the paper's weights: smooth L1 counts ten times the cross-entropy."""

    name = "eagle"
    passes = 1

    def __init__(self, config: HeadConfig, target: Target) -> None:
        super().__init__(config, target, inputs=1)
        self.passes = config.options["passes"]
        self.fc = nn.Linear(2 * self.hidden_size, self.hidden_size)

    @classmethod
    def configure(
        cls,
        target: Target,
        depth: int = 4,
        window: int = WINDOW,
        layers: int = 1,
        passes: int = 1,
        intermediate: int = 0,
        **options: Any,
    ) -> HeadConfig:
        changes = {"intermediate_size": intermediate} if intermediate else {}
        layer = layer_config(target, layers, **changes)
        about = described(target)
        return HeadConfig(cls.name, (LAST,), depth, window, layer, options={"passes": passes}, target=about, **options)

    def features(self, states: Tensor) -> Tensor:
        return states[..., 0, :]

    def enter(self, features: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        x = self.fc(torch.cat((embedded, features), -1))
        return x, self.layers[0].input_layernorm(x)

    def logits(self, own: Tensor) -> Tensor:
        return self.lm_head(own)  # type: ignore[no-any-return]

    def own_loss(self, own: Tensor, features: Tensor) -> Tensor | None:
        return 10 * F.smooth_l1_loss(own[:, : features.shape[1]], features)


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
        **options: Any,
    ) -> HeadConfig:
        count = target.num_layers
        reads = reads or tuple(sorted({min(2, count), count // 2, max(count - 3, 1)}))
        changes = {"intermediate_size": intermediate} if intermediate else {}
        layer, about = layer_config(target, layers, **changes), described(target)
        chosen = eagle3_options(fc_norm=True)  # what a layer passes on grows from layer to layer
        return HeadConfig(cls.name, reads, depth, window, layer, options=chosen, target=about, **options)

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
