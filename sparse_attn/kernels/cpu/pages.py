"""What is done to pages in place on a CPU: bounds of q·k over them, and tokens moved between them.

Gathering the statistics for a matrix product would move every number three times; this is one pass at the speed of
memory. Indexing tensors takes ten times as long as moving the few tokens of a step.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor


def page_bounds(q: Tensor, kmin: Tensor, kmax: Tensor, pages: Tensor) -> Tensor:
    """As `PageStats.bounds`: q float32 [R, Hq, D], kmin, kmax float32 [num_pages, Hkv, parts, D], pages int [P].

    A page of kmin and kmax must be contiguous; the pages may lie apart.

    Returns:
        float32 [R, Hq, P].
    """
    out = torch.empty(*q.shape[:2], len(pages))
    first, heads = int(kmin.storage_offset()) % kmin.stride(0), kmin.shape[1]
    low, high = (_whole_pages(t, first).numpy() for t in (kmin, kmax))
    query, wanted = (t.detach().contiguous().numpy() for t in (q, pages.int()))
    _bounds(query, low, high, first, heads, kmin.shape[2], wanted, out.numpy())
    return out


def token_bytes(part: Tensor) -> np.ndarray:
    """The memory of a part [num_pages, tiles, page_size, …] of a pool, uint8 [num_pages, tiles, page_size, bytes]."""
    return part.view(torch.uint8).view(*part.shape[:3], -1).numpy()


def copy_tokens(tokens: np.ndarray, source: np.ndarray, target: np.ndarray) -> None:
    """Copy tokens between slots, int64 [n] each, in `token_bytes`; all sources are read before a target is written."""
    _copy_tokens(tokens, source, target)


def _whole_pages(bounds: Tensor, first: int) -> Tensor:
    """The memory under a view [num_pages, heads, parts, D], as [num_pages, numbers of a page]."""
    size = bounds.stride(0)
    return bounds.detach().as_strided((len(bounds), size), (size, 1), int(bounds.storage_offset()) - first)


@numba.njit(
    "void(float32[:,:,::1], float32[:,::1], float32[:,::1], int64, int64, int64, int32[::1], float32[:,:,::1])",
    fastmath={"reassoc", "nsz", "contract"},
    nogil=True,
    cache=True,
)
def _bounds(q, kmin, kmax, first, kv_heads, parts, pages, out):  # type: ignore[no-untyped-def]
    num_rows, num_heads, dim = q.shape
    group = num_heads // kv_heads
    for i in range(len(pages)):
        page = pages[i]
        for head in range(num_heads):
            kv_head = head // group
            for row in range(num_rows):
                best = np.float32(-np.inf)
                for part in range(parts):
                    at = first + (kv_head * parts + part) * dim
                    lows, highs = kmin[page, at : at + dim], kmax[page, at : at + dim]
                    total = np.float32(0)
                    for d in range(dim):
                        low = q[row, head, d] * lows[d]
                        high = q[row, head, d] * highs[d]
                        total += low if low > high else high
                    best = max(best, total)
                out[row, head, i] = best


@numba.njit("void(uint8[:,:,:,::1], int64[::1], int64[::1])", nogil=True, cache=True)
def _copy_tokens(tokens, source, target):  # type: ignore[no-untyped-def]
    _, tiles, page_size, size = tokens.shape
    moved = np.empty((len(source), tiles, size), np.uint8)
    for i in range(len(source)):
        page, offset = divmod(source[i], page_size)
        moved[i] = tokens[page, :, offset]
    for i in range(len(target)):
        page, offset = divmod(target[i], page_size)
        tokens[page, :, offset] = moved[i]
