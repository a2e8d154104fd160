"""The step that every attention kernel repeats: a tile of keys into the running softmax of a tile of rows."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def absorb(q, k, v, k_scale, v_scale, acc, m, total, qk_scale, softcap, CAP: tl.constexpr, QUANT: tl.constexpr,
           visible, MASKED: tl.constexpr):  # fmt: skip
    """One step of online softmax in base 2 over a tile of keys; a row that has seen nothing keeps m = -inf.

    q [M, D], k [D, N], v [N, D], the last two int8 with float32 scales [N] under QUANT; acc float32 [M, D], m and total
    float32 [M]. With MASKED only what is ``visible`` [M, N] counts; without, every row has seen a key.
    """
    s = scores(q, k, k_scale, qk_scale, softcap, CAP, QUANT)
    if MASKED:
        s = tl.where(visible, s, float("-inf"))
    return weigh(q, s, v, v_scale, acc, m, total, QUANT, MASKED)


@triton.jit
def scores(q, k, k_scale, qk_scale, softcap, CAP: tl.constexpr, QUANT: tl.constexpr):
    """float32 [M, N], the logarithms to base 2 of the weights; tanh is by exponentials, of which 2 and 1 are exact."""
    s = tl.dot(q, k.to(q.dtype), input_precision="ieee")
    if QUANT:
        s = s * k_scale[None, :]
    if CAP:
        x = s * (qk_scale / softcap)
        s = softcap * (1.0 - 2.0 / (tl.exp2(x * 2.885390081777927) + 1.0)) * 1.4426950408889634
    else:
        s = s * (qk_scale * 1.4426950408889634)
    return s


@triton.jit
def weigh(q, s, v, v_scale, acc, m, total, QUANT: tl.constexpr, MASKED: tl.constexpr):
    """The second half of `absorb`; of ``q`` its dtype alone, in which weights and values are multiplied."""
    m_new = tl.maximum(m, tl.max(s, 1))
    base = m_new
    if MASKED:
        base = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.exp2(s - base[:, None])
    shrink = tl.exp2(m - base)
    total = total * shrink + tl.sum(p, 1)
    if QUANT:
        p = p * v_scale[None, :]
    acc = acc * shrink[:, None] + tl.dot(p.to(q.dtype), v.to(q.dtype), input_precision="ieee")
    return acc, m_new, total
