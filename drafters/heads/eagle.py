"""EAGLE (arXiv 2401.15077): a decoder layer that goes on from the target's last state, beside the token after it.

It learns that state itself, by which the target's own output matrix then guesses; the tree is grown by confidence as
EAGLE-2 does (arXiv 2406.16858), by `models.best_first`. FSPAD (arXiv 2408.15562) changes two things, each an option:

sampling   what the state leaves open the token decides: its embedding opens the gate of an MLP over both
partial    the last MLP makes two states: one is to be the target's, and is gone on from; the other is guessed by
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from drafters.heads.growing import KV, GrowingHead, joined
from drafters.heads.head import LAST, WINDOW, Guess, HeadConfig, configured, layer_config, member
from drafters.heads.layers import MLP, DecoderLayer, RMSNorm, Rotary, Unrolled, distance, transformer_config
from drafters.protocols import Target

ALONE = 0.5
"""Share of the training in which it has one pass, over the target's states: each costs as much as any other, and all
guesses hang on the first."""


class EagleLike(GrowingHead):
    """Decoder layers over pairs of a state and an embedded token; the first reads both."""

    passes: int  # of training
    _share = 1.0  # of it that is done

    def __init__(self, config: HeadConfig, target: Target, inputs: int = 1, outputs: int = 1) -> None:
        super().__init__(config, target)
        self.layer_config = transformer_config(config.layer)
        last = self.layer_config.num_hidden_layers - 1
        self.layers: Any = nn.ModuleList(
            DecoderLayer(self.layer_config, inputs if i == 0 else 1, outputs if i == last else 1)
            for i in range(last + 1)
        )
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
            [seen] = joined(before[i : i + 1], new[i:])
            attended = attention.attend(attention.queries(x, angles), *seen, mask)
            residual = layer.after(residual, attended)
        return self.leave(residual), new

    def progressed(self, share: float) -> None:
        self._share = share

    def guesses(self, states: Tensor, tokens: Tensor, generator: torch.Generator) -> Iterator[Guess]:
        features, embedded = self.features(states), self.embed(tokens)
        passes = self.config.depth if not self.training else self.passes if self._share >= ALONE else 1
        memory = [Unrolled(layer.self_attn, self.config.window) for layer in self.layers]
        own = features
        for k in range(1, passes + 1):
            count = tokens.shape[1] - k
            residual, x = self.enter(own[:, :count], embedded[:, k : k + count])
            angles = self.rotary(torch.arange(k - 1, k - 1 + count, device=tokens.device))
            layered = []
            for i, (layer, attend) in enumerate(zip(self.layers, memory, strict=True)):
                residual = layer.after(residual, attend(x if i == 0 else layer.input_layernorm(residual), angles))
                layered.append(residual)
            own = self.leave(residual)
            yield Guess(self.logits(own), torch.arange(count), self.own_loss(own, features[:, k:], layered[:-1]))

    def own_loss(self, own: Tensor, features: Tensor, inner: Sequence[Tensor]) -> Tensor | None:
        """What is learned besides tokens, of its own states [B, N, hidden], the target's features at their place, and
        what the layers before the last made."""
        return None


class FeatureSampling(nn.Module):
    """x = W [token, state], then x + MLP(x) whose gate the token opens."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, joined: Tensor) -> Tensor:
        """[..., hidden] of the token's embedding and the state, side by side."""
        x = self.fc(joined)
        sampled: Tensor = x + self.mlp(self.norm(x), joined[..., : x.shape[-1]])
        return sampled


@member
class Eagle(EagleLike):
    """Learns the target's last state, with the paper's weights: smooth L1 counts ten times the cross-entropy."""

    name = "eagle"

    def __init__(self, config: HeadConfig, target: Target) -> None:
        super().__init__(config, target, outputs=2 if config.options["partial"] else 1)
        self.passes = config.options["passes"]
        size = self.hidden_size
        self.fc = FeatureSampling(self.layer_config) if config.options["sampling"] else nn.Linear(2 * size, size)

    @classmethod
    def configure(
        cls,
        target: Target,
        depth: int = 4,
        window: int = WINDOW,
        layers: int = 1,
        passes: int = 1,
        intermediate: int = 0,
        sampling: int = 0,
        partial: int = 0,
        draft_vocab: int = 0,
    ) -> HeadConfig:
        layer = layer_config(target, layers, intermediate)
        own = {"passes": passes, "sampling": sampling, "partial": partial}
        return configured(cls.name, target, (LAST,), depth, window, layer, draft_vocab, **own)

    def features(self, states: Tensor) -> Tensor:
        return states[..., 0, :]

    def enter(self, features: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        x = self.fc(torch.cat((embedded, features[..., : self.hidden_size]), -1))
        return x, self.layers[0].input_layernorm(x)

    def logits(self, own: Tensor) -> Tensor:
        return self.lm_head(own[..., -self.hidden_size :])  # type: ignore[no-any-return]

    def own_loss(self, own: Tensor, features: Tensor, inner: Sequence[Tensor]) -> Tensor | None:
        return distance(own[..., : self.hidden_size], features)


@member
class Fspad(Eagle):
    """EAGLE with both of FSPAD's changes."""

    name = "fspad"

    @classmethod
    def configure(cls, target: Target, *given: Any, **options: Any) -> HeadConfig:
        return super().configure(target, *given, **{"sampling": 1, "partial": 1, **options})
