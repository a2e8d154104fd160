"""What lies between the products of a decoder layer, in Triton: residual and norm, gated activation, and all that
happens to queries, keys and values before attention reads them from pages.

Each is one launch in place of five to twenty, and rounds where the modules of transformers round.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_attn.kv.quant import LARGEST_SCALE, LEVELS

NORM_WARPS = 8


@triton.jit
def _norm(x, weight, eps, size: tl.constexpr, dtype: tl.constexpr):
    """RMS norm of a row in float32, rounded to dtype before the weight and after it."""
    normed = (x * tl.rsqrt(tl.sum(x * x, 0) / size + eps)).to(dtype).to(tl.float32)
    return (normed * weight).to(dtype)


@triton.jit
def _add_norm_kernel(
    X, DELTA, WEIGHT, SUM, OUT, stride_x, stride_delta, eps,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """One row: x + delta, and its norm."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < SIZE
    dtype: tl.constexpr = OUT.dtype.element_ty
    x = tl.load(X + row * stride_x + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        x = (x + tl.load(DELTA + row * stride_delta + at, mask=inside, other=0.0).to(tl.float32)).to(dtype)
        tl.store(SUM + row * SIZE + at, x, mask=inside)
        x = x.to(tl.float32)
    weight = tl.load(WEIGHT + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(OUT + row * SIZE + at, _norm(x, weight, eps, SIZE, dtype), mask=inside)


def add_rms_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + delta and the RMS norm of it, [T, d] each; rows may be strided."""
    rows, size = x.shape
    out = torch.empty(rows, size, dtype=x.dtype, device=x.device)
    total = torch.empty_like(out) if delta is not None else x
    _add_norm_kernel[(rows,)](
        *(x, delta, weight, total, out, x.stride(0), delta.stride(0) if delta is not None else 0, eps),
        SIZE=size,
        BLOCK=triton.next_power_of_2(size),
        ADD=delta is not None,
        num_warps=NORM_WARPS,
    )
    return total, out


@triton.jit
def _silu_mul_kernel(GATE, UP, OUT, stride_gate, stride_up, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    gate = tl.load(GATE + row * stride_gate + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(UP + row * stride_up + at, mask=inside, other=0.0).to(tl.float32)
    dtype: tl.constexpr = OUT.dtype.element_ty
    gated = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
    tl.store(OUT + row * size + at, (gated * up).to(dtype), mask=inside)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, [T, n]."""
    rows, size = gate.shape
    out = torch.empty(rows, size, dtype=gate.dtype, device=gate.device)
    block = min(1024, triton.next_power_of_2(size))
    _silu_mul_kernel[(rows, triton.cdiv(size, block))](gate, up, out, gate.stride(0), up.stride(0), size, BLOCK=block)
    return out


@triton.jit
def _turned(X, at, other, inside, weight, weight_other, cos, sin, sign, eps, half_ok,
            DIM: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr, dtype: tl.constexpr):  # fmt: skip
    """A head after its norm and its rotation: x · cos + rotate_half(x) · sin, each rounded."""
    x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    if NORM or ROPE:
        partner = tl.load(X + other, mask=half_ok, other=0.0).to(tl.float32)
        if NORM:
            scale = tl.rsqrt(tl.sum(x * x, 0) / DIM + eps)
            x = ((x * scale).to(dtype).to(tl.float32) * weight).to(dtype).to(tl.float32)
            partner = ((partner * scale).to(dtype).to(tl.float32) * weight_other).to(dtype).to(tl.float32)
        if ROPE:
            turned = (sign * partner * sin).to(dtype).to(tl.float32)
            x = ((x * cos).to(dtype).to(tl.float32) + turned).to(dtype).to(tl.float32)
    return x


@triton.jit
def _encoded(x, inside, levels, largest):
    """int8 codes of one key or value and its scale in float16, as `sparse_attn.kv.quant.quantize` makes them."""
    most = tl.max(tl.where(inside, tl.abs(x), 0.0), 0)
    scale = tl.minimum(tl.math.div_rn(most, levels), largest).to(tl.float16)
    steps = tl.math.div_rn(x, tl.maximum(scale.to(tl.float32), 1.1754943508222875e-38))
    scale = (scale.to(tl.float32) + tl.sum(tl.where(inside, x * 0.0, 0.0), 0)).to(tl.float16)  # what is no number stays
    steps = tl.minimum(tl.maximum(steps, -levels - 0.25), levels + 0.25)
    even = (steps + 12582912.0) - 12582912.0  # to the nearest, halves to even
    return tl.minimum(tl.maximum(even, -levels), levels).to(tl.int8), scale


@triton.jit
def _place_kernel(
    Q, K, V, COS, SIN, Q_NORM, K_NORM, Q_OUT, K_PAGES, V_PAGES, K_SCALES, V_SCALES, SLOTS,
    q_heads, kv_heads, stride_qt, stride_kt, stride_vt, stride_cos, stride_page, stride_head, stride_scale_page, eps,
    levels, largest,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAGE: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
    QUANT: tl.constexpr,
):  # fmt: skip
    """One row and one head of queries, keys or values: the heads of a row in this order."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    dtype: tl.constexpr = Q_OUT.dtype.element_ty
    offs = tl.arange(0, BLOCK_D)
    inside = offs < DIM
    half: tl.constexpr = DIM // 2
    partner = tl.where(offs < half, offs + half, offs - half)
    half_ok = inside & (partner < DIM)
    sign = tl.where(offs < half, -1.0, 1.0)
    cos = 1.0
    sin = 0.0
    if ROPE:
        cos = tl.load(COS + row * stride_cos + offs, mask=inside, other=0.0).to(tl.float32)
        sin = tl.load(SIN + row * stride_cos + offs, mask=inside, other=0.0).to(tl.float32)
    if head < q_heads:
        weight = 1.0
        weight_other = 1.0
        if NORM:
            weight = tl.load(Q_NORM + offs, mask=inside, other=0.0).to(tl.float32)
            weight_other = tl.load(Q_NORM + partner, mask=half_ok, other=0.0).to(tl.float32)
        base = row * stride_qt + head * DIM
        x = _turned(Q, base + offs, base + partner, inside, weight, weight_other, cos, sin, sign, eps, half_ok,
                    DIM, NORM, ROPE, dtype)  # fmt: skip
        tl.store(Q_OUT + (row * q_heads + head) * DIM + offs, x.to(dtype), mask=inside)
    else:
        kv = head - q_heads
        slot = tl.load(SLOTS + row)
        if slot >= 0:
            if kv < kv_heads:
                weight = 1.0
                weight_other = 1.0
                if NORM:
                    weight = tl.load(K_NORM + offs, mask=inside, other=0.0).to(tl.float32)
                    weight_other = tl.load(K_NORM + partner, mask=half_ok, other=0.0).to(tl.float32)
                base = row * stride_kt + kv * DIM
                x = _turned(K, base + offs, base + partner, inside, weight, weight_other, cos, sin, sign, eps, half_ok,
                            DIM, NORM, ROPE, dtype)  # fmt: skip
                to = slot // PAGE * stride_page + kv * stride_head + slot % PAGE * DIM
                if QUANT:
                    codes, scale = _encoded(x, inside, levels, largest)
                    tl.store(K_PAGES + to + offs, codes, mask=inside)
                    tl.store(K_SCALES + slot // PAGE * stride_scale_page + kv * PAGE + slot % PAGE, scale)
                else:
                    tl.store(K_PAGES + to + offs, x.to(K_PAGES.dtype.element_ty), mask=inside)
            else:
                kv = kv - kv_heads
                x = tl.load(V + row * stride_vt + kv * DIM + offs, mask=inside, other=0.0).to(tl.float32)
                to = slot // PAGE * stride_page + kv * stride_head + slot % PAGE * DIM
                if QUANT:
                    codes, scale = _encoded(x, inside, levels, largest)
                    tl.store(V_PAGES + to + offs, codes, mask=inside)
                    tl.store(V_SCALES + slot // PAGE * stride_scale_page + kv * PAGE + slot % PAGE, scale)
                else:
                    tl.store(V_PAGES + to + offs, x.to(V_PAGES.dtype.element_ty), mask=inside)


def place(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    angles: tuple[Tensor, Tensor] | None,
    norms: tuple[Tensor, Tensor, float] | None,
    pages: tuple[Tensor, Tensor],
    slots: Tensor,
    scales: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Norm and rotate new queries and keys, and put keys and values into pages: q [T, Hq, D] as attention takes it.

    Args:
        q, k, v: [T, H · D] of the products, rows may be strided.
        angles: cosines and sines [T, D]; None where the layer does not rotate.
        norms: weights [D] of the norms of queries and keys, and their epsilon; None for none.
        pages: K and V [pages, Hkv, page_size, D]; int8 with ``scales`` float16 [pages, Hkv, page_size].
        slots: int64 [T]; -1 writes nowhere.
    """
    k_pages, v_pages = pages
    _, kv_heads, page_size, dim = k_pages.shape
    rows, q_heads = len(q), q.shape[1] // dim
    out = torch.empty(rows, q_heads, dim, dtype=q.dtype, device=q.device)
    cos, sin = angles or (None, None)
    q_norm, k_norm, eps = norms or (None, None, 0.0)
    k_scales, v_scales = scales or (None, None)
    _place_kernel[(rows, q_heads + 2 * kv_heads)](
        *(q, k, v, cos, sin, q_norm, k_norm, out, k_pages, v_pages, k_scales, v_scales, slots),
        *(q_heads, kv_heads, q.stride(0), k.stride(0), v.stride(0), cos.stride(0) if cos is not None else 0),
        *(k_pages.stride(0), k_pages.stride(1), k_scales.stride(0) if k_scales is not None else 0),
        *(eps, float(LEVELS), LARGEST_SCALE),
        DIM=dim,
        BLOCK_D=triton.next_power_of_2(dim),
        PAGE=page_size,
        NORM=norms is not None,
        ROPE=angles is not None,
        QUANT=scales is not None,
        num_warps=1,
    )
    return out
