"""Bounds of q·k over pages on a CPU, reading the statistics in place.

Gathering them for a matrix product would move every number three times; this is one pass at the speed of memory.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor


def page_bounds(q: Tensor, kmin: Tensor, kmax: Tensor, pages: Tensor) -> Tensor:
    """As `PageStats.bounds`: q float32 [R, Hq, D], kmin, kmax float32 [num_pages, Hkv, parts, D], pages int [P].

    Returns:
        float32 [R, Hq, P].
    """
    out = torch.empty(*q.shape[:2], len(pages))
    arrays = (t.detach().contiguous().numpy() for t in (q, kmin, kmax, pages.int(), out))
    _bounds(*arrays)
    return out


@numba.njit(
    "void(float32[:,:,::1], float32[:,:,:,::1], float32[:,:,:,::1], int32[::1], float32[:,:,::1])",
    fastmath={"reassoc", "nsz", "contract"},
    nogil=True,
    cache=True,
)
def _bounds(q, kmin, kmax, pages, out):  # type: ignore[no-untyped-def]
    num_rows, num_heads, dim = q.shape
    kv_heads, parts = kmin.shape[1:3]
    group = num_heads // kv_heads
    for i in range(len(pages)):
        page = pages[i]
        for head in range(num_heads):
            kv_head = head // group
            for row in range(num_rows):
                best = np.float32(-np.inf)
                for part in range(parts):
                    total = np.float32(0)
                    for d in range(dim):
                        low = q[row, head, d] * kmin[page, kv_head, part, d]
                        high = q[row, head, d] * kmax[page, kv_head, part, d]
                        total += low if low > high else high
                    best = max(best, total)
                out[row, head, i] = best
