"""x · Wᵀ + b on a GPU, whose bits in a row do not depend on how many rows there are.

A matrix library takes another kernel, and another order of summation, for 1 row than for 33. Here the inner dimension
is cut into shares by the shape of the weights alone, a share is summed in steps of `BLOCK_K`, and the shares' sums are
added in their order. Few rows have a program for each share, so that the weights are read by the whole GPU; for many a
program goes through the shares itself. Their tiles are of 64 rows and of 128; to the tensor cores both are rows of 64
times `BLOCK_N` columns (a test reads that off the compiled code). As in the batch-invariant literature (Thinking
Machines, 2025), with more than one share.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

FEW = 64  # rows of a tile where there are no more; otherwise twice as many
BLOCK_N = 128
BLOCK_K = 64
PROGRAMS = 264  # wanted for few rows: 2 for each of a Hopper GPU's 132 multiprocessors
LEAST_STEPS = 4  # of a share


@triton.jit(do_not_specialize=["rows"])
def _linear_kernel(
    X, W, BIAS, OUT, PARTS, rows, columns, depth, share, stride_x, stride_w,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SHARES: tl.constexpr, SPLIT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """A tile of rows and columns: one share of the inner dimension, or all of them one after the other."""
    tiles = tl.cdiv(rows, BLOCK_M)
    offs_m = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)  # the programs of one tile of W are neighbours
    offs_n = tl.program_id(0) // tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    row_ok = offs_m < rows
    column_ok = offs_n < columns
    x_at = X + offs_m.to(tl.int64)[:, None] * stride_x + offs_k[None, :]
    w_at = W + offs_n.to(tl.int64)[None, :] * stride_w + offs_k[:, None]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    first = tl.program_id(1)
    last = first + 1
    if not SPLIT:
        last = SHARES
    for part in range(first, last):
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for k in range(part * share, tl.minimum((part + 1) * share, depth), BLOCK_K):
            inside = k + offs_k < depth
            x = tl.load(x_at + k, mask=row_ok[:, None] & inside[None, :], other=0.0)
            w = tl.load(w_at + k, mask=column_ok[None, :] & inside[:, None], other=0.0)
            acc = tl.dot(x, w, acc, input_precision="ieee")
        total += acc
    to = offs_m.to(tl.int64)[:, None] * columns + offs_n[None, :]
    mask = row_ok[:, None] & column_ok[None, :]
    if SPLIT:
        tl.store(PARTS + first.to(tl.int64) * rows * columns + to, total, mask=mask)
    else:
        if HAS_BIAS:
            total += tl.load(BIAS + offs_n, mask=column_ok, other=0.0).to(tl.float32)[None, :]
        tl.store(OUT + to, total.to(OUT.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["count"])
def _sum_kernel(
    PARTS, BIAS, OUT, count, columns, SHARES: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sums of the shares, added in their order."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(SHARES):
        total += tl.load(PARTS + part * count + at, mask=inside, other=0.0)
    if HAS_BIAS:
        total += tl.load(BIAS + at % columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(OUT + at, total.to(OUT.dtype.element_ty), mask=inside)


def shares_of(columns: int, depth: int) -> tuple[int, int]:
    """Into how many shares the inner dimension of weights [columns, depth] is cut, and the length of one."""
    steps = triton.cdiv(depth, BLOCK_K)
    wanted = min(triton.cdiv(PROGRAMS, triton.cdiv(columns, BLOCK_N)), max(1, steps // LEAST_STEPS), 8)
    each = triton.cdiv(steps, wanted)
    return triton.cdiv(steps, each), each * BLOCK_K


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """x [T, K] times weight [N, K] in rows, plus bias [N]: [T, N] in ``dtype``, default that of x; sums in float32."""
    rows, depth = x.shape
    columns = len(weight)
    out = torch.empty(rows, columns, dtype=dtype or x.dtype, device=x.device)
    if not rows:
        return out
    if x.stride(1) != 1:
        x = x.contiguous()
    shares, each = shares_of(columns, depth)
    few = rows <= FEW
    split = few and shares > 1
    parts = torch.empty(shares, rows, columns, dtype=torch.float32, device=x.device) if split else None
    block_m = FEW if few else 2 * FEW
    grid = (triton.cdiv(rows, block_m) * triton.cdiv(columns, BLOCK_N), shares if split else 1)
    _linear_kernel[grid](
        *(x, weight, bias, out, parts, rows, columns, depth, each, x.stride(0), weight.stride(0)),
        BLOCK_M=block_m,
        BLOCK_N=BLOCK_N,
        BLOCK_K=BLOCK_K,
        SHARES=shares,
        SPLIT=split,
        HAS_BIAS=bias is not None,
        num_warps=block_m // 16,
        num_stages=4 if x.element_size() < 4 else 2,
        enable_fp_fusion=False,
    )
    if split:
        count = rows * columns
        _sum_kernel[(triton.cdiv(count, 1024),)](
            *(parts, bias, out, count, columns), SHARES=shares, HAS_BIAS=bias is not None, BLOCK=1024,
            enable_fp_fusion=False,
        )  # fmt: skip
    return out
