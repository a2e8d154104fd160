"""Clover (arXiv 2405.00263): heads in a row, each told by attention of the token guessed before it.

An *augmenting block*, a decoder layer over the target's last states, gathers what later guesses need of the text. From
there a state goes on from guess to guess (the *regressive connection*): the *attention decoder* lets it take of the
newest token's embedding, head by head, as much as the two agree (their cosine, as Clover's authors have it, in place
of a softmax over a single key).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drafters.heads.growing import KV, joined, latest
from drafters.heads.head import (
    LAST,
    WINDOW,
    Context,
    Guess,
    Head,
    HeadConfig,
    Shallow,
    configured,
    layer_config,
    member,
)
from drafters.heads.layers import DecoderLayer, RMSNorm, Rotary, causal, transformer_config
from drafters.heads.medusa import Projection, ResidualBlock
from drafters.heads.rows import depths_below
from drafters.protocols import Target


class AttentionDecoder(nn.Module):
    """state + values of the token, each head's by the cosine of the state's query and the token's key."""

    def __init__(self, size: int, heads: int, epsilon: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.token_norm = RMSNorm(size, epsilon), RMSNorm(size, epsilon)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(size, size) for _ in range(3))

    def forward(self, state: Tensor, token: Tensor) -> Tensor:
        """[..., hidden] of the state and the embedded token [..., hidden]."""
        token = self.token_norm(token)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1))
            for part in (self.q_proj(self.norm(state)), self.k_proj(token), self.v_proj(token))
        )
        return state + (F.cosine_similarity(q, k, -1)[..., None] * v).flatten(-2)


@member
class Clover(Head):
    """The augmenting block, one attention decoder for all guesses, and for each a head like Medusa's."""

    name = "clover"

    def __init__(self, config: HeadConfig, target: Target) -> None:
        super().__init__(config, target)
        layer, size = transformer_config(config.layer), self.hidden_size
        self.layers: Any = nn.ModuleList(DecoderLayer(layer) for _ in range(layer.num_hidden_layers))
        self.rotary = Rotary(layer)
        self.decoder = AttentionDecoder(size, layer.num_attention_heads, layer.rms_norm_eps)
        self.heads: Any = nn.ModuleList(
            nn.Sequential(ResidualBlock(size), Projection(size)) for _ in range(config.depth)
        )

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

    def augment(self, states: Tensor, first: int, before: Sequence[KV]) -> tuple[Tensor, list[KV]]:
        """The augmenting block's output [..., n, hidden] of the states [..., n, hidden] from place `first` on, and the
        KV in each layer of these and of `before`."""
        count, behind = states.shape[-2], len(before[0][0]) if before else 0
        angles = self.rotary(torch.arange(first, first + count, device=states.device))
        mask = causal(count, behind, self.config.window, states.device)
        x, kept = states, list[KV]()
        for i, layer in enumerate(self.layers):
            normed = layer.input_layernorm(x)
            kept += joined(before[i : i + 1], [layer.self_attn.keys_values(normed, angles)])
            x = layer.after(x, layer.self_attn.attend(layer.self_attn.queries(normed, angles), *kept[i], mask))
        return x, kept

    def guesses(self, states: Tensor, tokens: Tensor, generator: torch.Generator) -> Iterator[Guess]:
        embedded, (state, _) = self.embed(tokens), self.augment(states[:, :, 0], 0, ())
        for k, head in enumerate(self.heads, 1):
            count = tokens.shape[1] - k
            state = self.decoder(state[:, :count], embedded[:, k:])
            yield Guess(self.lm_head(head(state)), torch.arange(count))

    def begin(self, shallow: Shallow | None = None) -> Context:
        return _Regressive(self)


class _Regressive(Context):
    """The augmenting block's KV of the pairs in the window; of root and nodes the state that goes on."""

    def __init__(self, head: Clover) -> None:
        self._head = head
        self._pairs: list[KV] = []
        self._root = torch.empty(0)
        self._states = torch.empty(0)
        self._depths: list[int] = []

    def follow(self, states: Tensor, tokens: Tensor, first: int) -> Tensor:
        head, window = self._head, self._head.config.window
        cut = max(0, len(tokens) - window)
        augmented, kept = head.augment(states[cut:, 0], first + cut, self._pairs)
        self._pairs = latest(kept, window)
        self._root = head.decoder(augmented[-1:], head.embed(tokens[-1:]))
        self.drop()
        return head.lm_head(head.heads[0](self._root))  # type: ignore[no-any-return]

    def drop(self) -> None:
        self._states, self._depths = self._root[:0], []

    def expand(self, tokens: Tensor, parents: Sequence[int]) -> Tensor:
        head = self._head
        depths = depths_below(parents, self._depths)
        above = torch.cat([self._root if parent < 0 else self._states[parent : parent + 1] for parent in parents])
        new = head.decoder(above, head.embed(tokens))
        self._depths += depths
        self._states = torch.cat((self._states, new))
        return head.lm_head(torch.cat([head.heads[d](row) for d, row in zip(depths, new.split(1), strict=True)]))  # type: ignore[no-any-return]
