"""DFlash: a whole block of guesses in one forward, by layers that attend to the target's states and to one another.

A block is the root's embedding and a mask token's for every place behind it; a place guesses the token that belongs
there. All of a block see one another and the fused states of the target before it; of these the layers make keys and
values alone, so that reading the text costs two small products a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from drafters.heads.growing import KV
from drafters.heads.head import (
    WINDOW,
    Context,
    Guess,
    Head,
    HeadConfig,
    Shallow,
    configured,
    layer_config,
    member,
    spread,
)
from drafters.heads.layers import DecoderLayer, RMSNorm, Rotary, transformer_config
from drafters.heads.rows import RowsContext
from drafters.protocols import Target

_ANCHORS = 24  # blocks drawn of a sequence, at training


@member
class DFlash(Head):
    """Blocks of `depth` guesses and the root."""

    name = "dflash"
    costly = False

    def __init__(self, config: HeadConfig, target: Target) -> None:
        super().__init__(config, target)
        self.layer_config = transformer_config(config.layer)
        epsilon = self.layer_config.rms_norm_eps
        self.fc = nn.Linear(len(config.reads) * self.hidden_size, self.hidden_size, bias=False)
        self.hidden_norm = RMSNorm(self.hidden_size, epsilon)
        self.layers: Any = nn.ModuleList(
            DecoderLayer(self.layer_config) for _ in range(self.layer_config.num_hidden_layers)
        )
        self.norm = RMSNorm(self.hidden_size, epsilon)
        self.rotary = Rotary(self.layer_config)

    @classmethod
    def configure(
        cls,
        target: Target,
        depth: int = 7,
        window: int = WINDOW,
        layers: int = 2,
        reads: tuple[int, ...] = (),
        intermediate: int = 0,
        mask_token: int | None = None,
        draft_vocab: int = 0,
    ) -> HeadConfig:
        layer = layer_config(target, layers, intermediate, "qwen3")
        mask = target.vocab_size - 1 if mask_token is None else mask_token
        return configured(cls.name, target, reads or spread(target), depth, window, layer, draft_vocab, mask_token=mask)

    def guesses(self, states: Tensor, tokens: Tensor, generator: torch.Generator) -> Iterator[Guess]:
        length, size = tokens.shape[1], self.config.depth + 1
        most = length - self.config.depth
        anchors = 1 + torch.randperm(most - 1, generator=generator)[:_ANCHORS].sort().values
        places = (anchors[:, None] + torch.arange(size)).flatten()
        block = torch.arange(len(anchors)).repeat_interleave(size)
        context = torch.arange(length)
        start = anchors[block][:, None]
        sees_text = (context < start) & (context >= start - self.config.window)
        mask = torch.cat((sees_text, block[:, None] == block), 1)
        fused = self._fused(states)
        text = [layer.self_attn.keys_values(fused, self.rotary(context)) for layer in self.layers]
        rows = self._rows(self._block(tokens[:, anchors]).flatten(1, 2), places, text, mask)
        rows = rows.unflatten(1, (len(anchors), size))
        for k in range(1, size):
            yield Guess(rows[:, :, k], anchors - 1)

    def begin(self, shallow: Shallow | None = None) -> Context:
        return _Block(self)

    def _fused(self, states: Tensor) -> Tensor:
        return self.hidden_norm(self.fc(states.flatten(-2)))  # type: ignore[no-any-return]

    def _block(self, roots: Tensor) -> Tensor:
        """Embeddings [..., depth + 1, hidden] of blocks behind the tokens `roots`."""
        masks = torch.full_like(roots, self.config.options["mask_token"])
        return self.embed(torch.stack([roots, *[masks] * self.config.depth], -1))

    def _rows(self, x: Tensor, positions: Tensor, text: list[KV], mask: Tensor) -> Tensor:
        """Logits [..., n, draft vocabulary] of rows x [..., n, hidden] that see the KV of the text and one another."""
        angles = self.rotary(positions)
        for layer, (keys, values) in zip(self.layers, text, strict=True):
            normed = layer.input_layernorm(x)
            own_keys, own_values = layer.self_attn.keys_values(normed, angles)
            keys, values = torch.cat((keys, own_keys), -3), torch.cat((values, own_values), -3)
            q = layer.self_attn.queries(normed, angles)
            x = layer.after(x, layer.self_attn.attend(q, keys, values, mask))
        return self.lm_head(self.norm(x))  # type: ignore[no-any-return]


class _Block(RowsContext):
    """The KV of the text in the window; a block behind it is run at each `follow`."""

    def __init__(self, head: DFlash) -> None:
        super().__init__(self._of_block)
        self._head = head
        self._text: list[KV] = []

    def _of_block(self, states: Tensor, tokens: Tensor, first: int) -> Tensor:
        head, window = self._head, self._head.config.window
        cut = max(0, len(tokens) - window)
        fused = head._fused(states[cut:])
        angles = head.rotary(torch.arange(first + cut, first + len(tokens), device=states.device))
        new = [layer.self_attn.keys_values(fused, angles) for layer in head.layers]
        if self._text:
            new = [(torch.cat((a, c)), torch.cat((b, d))) for (a, b), (c, d) in zip(self._text, new, strict=True)]
        self._text = [(k[-window:], v[-window:]) for k, v in new]
        x = head._block(tokens[-1])
        root = first + len(tokens)
        positions = torch.arange(root, root + len(x), device=states.device)
        seen = torch.ones(len(x), len(self._text[0][0]) + len(x), dtype=torch.bool, device=states.device)
        return head._rows(x, positions, self._text, seen)[1:]
