"""Chimera (arXiv 2402.15758): what the target knows of the text, and for tokens it has not seen yet, three in a row.

The *trigram encoder* makes of a token and the two before it what stands in for the state that the target has not
computed. The *full-context encoder*, a decoder layer, lets it see the target's states of the text and the trigrams
since; what it makes is learned to be the target's state there. So of what was guessed nothing is gone on from but
tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drafters.heads.eagle import EagleLike
from drafters.heads.growing import RootedContext
from drafters.heads.head import LAST, WINDOW, Context, Guess, HeadConfig, Shallow, configured, layer_config, member
from drafters.heads.layers import Unrolled, distance
from drafters.heads.medusa import ResidualBlock
from drafters.protocols import Target


@member
class Chimera(EagleLike):
    """Trigrams below, attention to the target's last states above, and a residual block before the output matrix."""

    name = "chimera"

    def __init__(self, config: HeadConfig, target: Target) -> None:
        super().__init__(config, target)
        size = self.hidden_size
        self.trigram = nn.Sequential(ResidualBlock(3 * size), nn.Linear(3 * size, size, bias=False))
        self.head = ResidualBlock(size)

    @classmethod
    def configure(
        cls,
        target: Target,
        depth: int = 4,
        window: int = WINDOW,
        layers: int = 1,
        intermediate: int = 0,
        draft_vocab: int = 0,
    ) -> HeadConfig:
        layer = layer_config(target, layers, intermediate)
        return configured(cls.name, target, (LAST,), depth, window, layer, draft_vocab)

    def features(self, states: Tensor) -> Tensor:
        return states[..., 0, :]

    def enter(self, features: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        return features, self.layers[0].input_layernorm(features)

    def logits(self, own: Tensor) -> Tensor:
        return self.lm_head(self.head(own))  # type: ignore[no-any-return]

    def guesses(self, states: Tensor, tokens: Tensor, generator: torch.Generator) -> Iterator[Guess]:
        text, embedded = self.features(states), self.embed(tokens)
        embedded = F.pad(embedded[:, 1:], (0, 0, 3, 0))  # the first token is in no pair
        trigrams = self.trigram(torch.cat((embedded[:, :-2], embedded[:, 1:-1], embedded[:, 2:]), -1))
        memory = [Unrolled(layer.self_attn, self.config.window) for layer in self.layers]
        self._passed(text, 0, memory)
        for k in range(1, self.config.depth + 1):
            count = tokens.shape[1] - k
            own = self._passed(trigrams[:, k : k + count], k, memory)
            yield Guess(self.logits(own), torch.arange(count), distance(own, text[:, k:]))

    def _passed(self, x: Tensor, first: int, memory: Sequence[Unrolled]) -> Tensor:
        """The layers' output [B, N, hidden] of x [B, N, hidden] at the places from `first` on."""
        angles = self.rotary(torch.arange(first, first + x.shape[1], device=x.device))
        for layer, attend in zip(self.layers, memory, strict=True):
            x = layer.after(x, attend(layer.input_layernorm(x), angles))
        return x

    def begin(self, shallow: Shallow | None = None) -> Context:
        return _Trigrams(self)


class _Trigrams(RootedContext):
    """Root and nodes stand for the trigrams that they end."""

    def __init__(self, head: Chimera) -> None:
        super().__init__(head, self._trigrams)
        self._encode, self._embed = head.trigram, head.embed
        self._last = torch.zeros(3, head.hidden_size)  # the root's
        self._nodes: list[Tensor] = []  # embeddings of the three tokens

    def follow(self, states: Tensor, tokens: Tensor, first: int) -> Tensor:
        self._last = torch.cat((self._last.to(states), self._embed(tokens)))[-3:]
        return super().follow(states, tokens, first)

    def _trigrams(self, tokens: Tensor, parents: Sequence[int]) -> Tensor:
        if parents[0] < 0:
            self._nodes = [self._last]
        else:
            for own, parent in zip(self._embed(tokens).split(1), parents, strict=True):
                self._nodes.append(torch.cat((self._nodes[parent][1:], own)))
        found: Tensor = self._encode(torch.stack(self._nodes[-len(parents) :]).flatten(1))
        return found
