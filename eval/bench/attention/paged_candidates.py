"""Other ways to attend from one row to a paged context on a CPU, measured beside the one that Folio uses.

numba compiles loops with LLVM; FlexAttention compiles a torch function with inductor and needs a C++ compiler, and is
given contiguous keys and values here, which spares it the pages. Neither returns anything but the output.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Layer = Callable[[], tuple[Tensor, Tensor]]
SPLIT = 16  # pages a task


class NumbaDecode:
    """Online softmax by page, split over pages and heads; query heads of a KV head together."""

    def __init__(self, table: Tensor, context: int, scale: float) -> None:
        self.table, self.context, self.scale = table[0].numpy(), context, np.float32(scale)

    def bind(self, q: Tensor, layer: Layer) -> Callable[[], object]:
        rows = q[0].numpy()

        def call() -> Any:
            keys, values = layer()
            return _numba_decode(rows, keys.numpy(), values.numpy(), self.table, self.context, self.scale)

        return call


@numba.njit(parallel=True, fastmath=True, cache=True)
def _numba_decode(  # type: ignore[no-untyped-def]
    q, keys, values, table, context, scale
):  # pragma: no cover (compiled)
    heads, dim = q.shape
    kv_heads, page_size = keys.shape[1], keys.shape[2]
    group = heads // kv_heads
    pages = (context + page_size - 1) // page_size
    splits = (pages + SPLIT - 1) // SPLIT
    tops = np.full((splits, heads), -np.inf, np.float32)
    sums = np.zeros((splits, heads), np.float32)
    parts = np.zeros((splits, heads, dim), np.float32)
    for task in numba.prange(splits * kv_heads):
        split, kv_head = task // kv_heads, task % kv_heads
        scores = np.empty(page_size, np.float32)
        for p in range(split * SPLIT, min((split + 1) * SPLIT, pages)):
            page = table[p]
            count = min(page_size, context - p * page_size)
            for g in range(group):
                head = kv_head * group + g
                top = tops[split, head]
                for j in range(count):
                    score = np.float32(0)
                    for d in range(dim):
                        score += q[head, d] * keys[page, kv_head, j, d]
                    scores[j] = score * scale
                    top = max(top, scores[j])
                shrink = np.exp(tops[split, head] - top)
                tops[split, head] = top
                sums[split, head] *= shrink
                for d in range(dim):
                    parts[split, head, d] *= shrink
                for j in range(count):
                    weight = np.exp(scores[j] - top)
                    sums[split, head] += weight
                    for d in range(dim):
                        parts[split, head, d] += weight * values[page, kv_head, j, d]
    out = np.zeros((heads, dim), np.float32)
    for head in range(heads):
        top = tops[:, head].max()
        total = np.float32(0)
        for split in range(splits):
            weight = np.exp(tops[split, head] - top)
            total += weight * sums[split, head]
            out[head] += weight * parts[split, head]
        out[head] /= total
    return out


class FlexDecode:
    """torch's FlexAttention, compiled, over contiguous keys and values."""

    def __init__(self, compiled: Callable[..., Any], scale: float) -> None:
        self.compiled, self.scale = compiled, scale

    @classmethod
    def build(cls, heads: int, scale: float) -> FlexDecode | None:
        """None, with the reason logged, where this torch cannot compile it."""
        try:
            from torch.nn.attention.flex_attention import flex_attention

            compiled = torch.compile(flex_attention)
            probe = torch.randn(1, heads, 1, 16)
            compiled(probe, torch.randn(1, heads, 128, 16), torch.randn(1, heads, 128, 16))
        except Exception as error:
            logger.warning("FlexAttention is left out: %s", str(error).splitlines()[0])
            return None
        return cls(compiled, scale)

    def bind(self, q: Tensor, layer: Layer) -> Callable[[], object]:
        row = q.transpose(0, 1)[None].contiguous()

        def call() -> Any:  # as many keys and values as the pages hold, though not in their order
            keys, values = (x.view(1, x.shape[1], -1, x.shape[3]) for x in layer())
            return self.compiled(row, keys, values, scale=self.scale, enable_gqa=True)

        return call
