"""Which tokens of a passage would be read otherwise behind what stands before them (CacheBlend, arXiv 2405.16444, 4.3).

The first layer's keys and values depend on a token alone, so that the second layer's are the first that tell. What
they are in a prompt takes one layer of it and two projections of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sparse_attn.batch import AttnBatch, ForwardEnded, GroupTables
from sparse_attn.host_values import on_device
from sparse_attn.kv.pool import KVPool


class ShallowReading:
    """The values of a prompt's tokens in the layer that tells, read in chunks into pages of its own.

    Attributes:
        layer: the layer that tells: the second, or the only one.
    """

    def __init__(self, model: Any, like: KVPool, token_ids: Sequence[int]) -> None:
        """like: the pool whose precision the pages have."""
        self.layer = min(1, like.shape.num_layers - 1)
        self._model = model
        self._ids = token_ids
        self._done = 0
        self._pages = -(-len(token_ids) // like.page_size)
        shape = replace(like.shape, num_layers=self.layer + 1)
        self._pool = KVPool(shape, self._pages, like.page_size, like.dtype, like.device, products=like.products)

    @torch.inference_mode()
    def read(self, most: int) -> bool:
        """Read so many tokens more; returns whether that were all."""
        start, device = self._done, self._pool.device
        end = self._done = min(start + most, len(self._ids))
        slots = torch.arange(start, end, device=device)
        batch = AttnBatch(
            pool=self._pool,
            cu_seqlens=on_device([0, end - start], torch.int32, device),
            context_lens=on_device([start], torch.int32, device),
            tables=[GroupTables(torch.arange(self._pages, dtype=torch.int32, device=device)[None], slots)],
            positions=slots,
            ends_at=self.layer,
        )
        ids = on_device(list(self._ids[start:end]), torch.int64, device)[None]
        with suppress(ForwardEnded):
            self._model(input_ids=ids, position_ids=slots[None], use_cache=False, attn=batch, logits_to_keep=1)
        return end == len(self._ids)

    def deviation(self, span: range, values: Tensor) -> Tensor:
        """How far the values [T, Hkv, D] of tokens read elsewhere lie from theirs here: float32 [T], squared."""
        slots = torch.arange(span.start, span.stop, device=self._pool.device)
        _, here = self._pool.groups[0].read(self.layer, slots, values.dtype)
        return (here.float() - values.to(here.device).float()).square().sum((1, 2)).cpu()


def without(span: range, chosen: Sequence[int]) -> list[range]:
    """What is left of a span without some places in it, ascending."""
    edges = [span.start - 1, *chosen, span.stop]
    gaps = (range(one + 1, other) for one, other in pairwise(edges))
    return [gap for gap in gaps if gap]
