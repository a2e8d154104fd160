"""A Triton kernel that puts new keys and values into their pages: one launch for both sides and their scales."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _write_kernel(
    K_NEW, V_NEW, K, V, K_SCALE_NEW, V_SCALE_NEW, K_SCALE, V_SCALE, SLOTS,
    stride_kt, stride_kh, stride_vt, stride_vh, stride_st, stride_page, stride_head, stride_scale_page,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAGE: tl.constexpr, QUANT: tl.constexpr,
):  # fmt: skip
    """One row and KV head; a slot of -1 is written nowhere."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    slot = tl.load(SLOTS + row)
    if slot >= 0:
        page = slot // PAGE
        offset = slot % PAGE
        offs_d = tl.arange(0, BLOCK_D)
        in_head = offs_d < HEAD_DIM
        to = page * stride_page + head * stride_head + offset * HEAD_DIM + offs_d
        k = tl.load(K_NEW + row * stride_kt + head * stride_kh + offs_d, mask=in_head, other=0)
        v = tl.load(V_NEW + row * stride_vt + head * stride_vh + offs_d, mask=in_head, other=0)
        tl.store(K + to, k, mask=in_head)
        tl.store(V + to, v, mask=in_head)
        if QUANT:
            scale_to = page * stride_scale_page + head * PAGE + offset
            tl.store(K_SCALE + scale_to, tl.load(K_SCALE_NEW + row * stride_st + head))
            tl.store(V_SCALE + scale_to, tl.load(V_SCALE_NEW + row * stride_st + head))


def write_rows(
    k: Tensor,
    v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    slots: Tensor,
    scales: Sequence[Tensor] = (),
) -> None:
    """Put k, v [T, Hkv, D] into pages [pages, Hkv, page_size, D] at int64 slots [T]; -1 writes nowhere.

    All of one dtype. ``scales`` come with int8: of the new keys and values float16 [T, Hkv], and those of the pages
    [pages, Hkv, page_size]. Both sides' pages must lie alike.
    """
    rows, heads, dim = k.shape
    if not rows:
        return
    k_scale, v_scale, k_scales, v_scales = scales or (None, None, None, None)
    _write_kernel[(rows, heads)](
        *(k, v, k_pages, v_pages, k_scale, v_scale, k_scales, v_scales, slots),
        *(k.stride(0), k.stride(1), v.stride(0), v.stride(1), k_scale.stride(0) if k_scale is not None else 0),
        *(k_pages.stride(0), k_pages.stride(1), k_scales.stride(0) if k_scales is not None else 0),
        HEAD_DIM=dim,
        BLOCK_D=triton.next_power_of_2(dim),
        PAGE=k_pages.shape[2],
        QUANT=bool(scales),
    )
