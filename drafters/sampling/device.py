"""`sampling.choose` for logits on a GPU: the target's tokens in two launches, three where a row is cut.

A program of the first kernel finds where a row's top-k and top-p end, by bisection over the numbers themselves, which
are ordered as integers: nothing is sorted. The second draws the noise and takes the largest of each stretch of the
vocabulary, the third the largest of those. The host reads nothing but the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from drafters.sampling.noise import BLOCK, BLOCK_STEP, GOLDEN, MIX_1, MIX_2
from drafters.verify import NO_TOKEN

STRETCH = 2048  # of the vocabulary, for a program; a multiple of the noise's block
AT_ONCE = 4096  # logits that a program looks at in one go
COLUMNS = 5  # temperature, top_k, top_p, seed, position


@triton.jit
def _mix(x, MIX_1: tl.constexpr, MIX_2: tl.constexpr):
    x = (x ^ (x >> 30)) * MIX_1
    x = (x ^ (x >> 27)) * MIX_2
    return x ^ (x >> 31)


@triton.jit
def _unit(bits):
    return ((bits >> 12).to(tl.float64) + 0.5) * 2.220446049250313e-16


@triton.jit
def _noise(seed, position, tokens, BLOCK: tl.constexpr, BLOCK_STEP: tl.constexpr, GOLDEN: tl.constexpr,
           MIX_1: tl.constexpr, MIX_2: tl.constexpr):  # fmt: skip
    """As `noise.noise`, of one key and a vector of tokens."""
    key = _mix(_mix(seed.to(tl.uint64) + GOLDEN, MIX_1, MIX_2) ^ (position.to(tl.uint64) * GOLDEN), MIX_1, MIX_2)
    block = _mix(key + ((tokens // BLOCK) + 1).to(tl.uint64) * BLOCK_STEP, MIX_1, MIX_2)
    least = -tl.log(_unit(block)) / BLOCK
    place = (block & (BLOCK - 1)).to(tl.int32)
    own = -tl.log(_unit(_mix(key + (tokens + 1).to(tl.uint64) * GOLDEN, MIX_1, MIX_2)))
    return -tl.log(tl.where(tokens % BLOCK == place, least, least + own))


@triton.jit
def _ordered(x):
    """Integers in the order of float32 numbers, widened so that their middle can be taken."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # -0 is 0
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def _above(LOGITS, row_at, vocab, border, top, scale, AT_ONCE: tl.constexpr):
    """How many logits lie above a border, and their mass where the largest has 1."""
    count = 0
    mass = 0.0
    for begin in range(0, vocab, AT_ONCE):
        at = begin + tl.arange(0, AT_ONCE)
        x = tl.load(LOGITS + row_at + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
        higher = (_ordered(x) > border) & (at < vocab)
        count += tl.sum(higher.to(tl.int32), 0)
        mass += tl.sum(tl.where(higher, tl.exp((x - top) * scale), 0.0), 0)
    return count, mass


@triton.jit
def _border_kernel(
    LOGITS, COLUMN, BORDER, LAST, stride, vocab, COLUMNS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """One row: the smallest number that is kept, ordered as an integer, and the last token of those equal to it."""
    row = tl.program_id(0).to(tl.int64)
    own = COLUMN + row * COLUMNS
    temperature = tl.load(own).to(tl.float64, bitcast=True)
    top_k = tl.load(own + 1)
    top_p = tl.load(own + 2).to(tl.float64, bitcast=True)
    border = tl.full([], -2147483648, tl.int64)
    last = vocab
    if (temperature > 0) & (((top_k > 0) & (top_k < vocab)) | (top_p < 1.0)):
        row_at = row * stride
        highest = tl.full([], -2147483648, tl.int64)
        top = float("-inf")
        for begin in range(0, vocab, AT_ONCE):
            at = begin + tl.arange(0, AT_ONCE)
            x = tl.load(LOGITS + row_at + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
            top = tl.maximum(top, tl.max(x, 0))
            highest = tl.maximum(highest, tl.max(_ordered(x), 0))
        scale = (1.0 / temperature).to(tl.float32)
        every = tl.full([], 0, tl.int64) + vocab
        room = every
        if (top_k > 0) & (top_k < vocab):
            # the smallest border above which there are fewer than k numbers is the k-th largest number
            low = tl.full([], -2147483648, tl.int64)
            high = highest
            while low < high:
                middle = (low + high) >> 1
                count, mass = _above(LOGITS, row_at, vocab, middle, top, scale, AT_ONCE)
                if count < top_k:
                    high = middle
                else:
                    low = middle + 1
            border = high
            count, mass = _above(LOGITS, row_at, vocab, border, top, scale, AT_ONCE)
            room = top_k - count
        if top_p < 1.0:
            least = border
            count, total = _above(LOGITS, row_at, vocab, border, top, scale, AT_ONCE)
            equal = (border ^ ((border >> 63) & 0x7FFFFFFF)).to(tl.int32).to(tl.float32, bitcast=True)
            if (top_k > 0) & (top_k < vocab):
                total += room.to(tl.float32) * tl.exp((equal - top) * scale)
            low = least
            high = highest
            while low < high:
                middle = (low + high) >> 1
                count, mass = _above(LOGITS, row_at, vocab, middle, top, scale, AT_ONCE)
                if mass < top_p * total:
                    high = middle
                else:
                    low = middle + 1
            count, mass = _above(LOGITS, row_at, vocab, high, top, scale, AT_ONCE)
            equal = (high ^ ((high >> 63) & 0x7FFFFFFF)).to(tl.int32).to(tl.float32, bitcast=True)
            each = tl.exp((equal - top) * scale).to(tl.float64)
            kept = tl.ceil((top_p * total - mass) / each)
            kept = tl.maximum(tl.minimum(kept, 2147483647.0), 1.0).to(tl.int64)
            room = tl.minimum(kept, tl.where(high == least, room, every))
            border = high
        # equals are kept from the lowest token on
        seen = tl.full([], 0, tl.int64)
        for begin in range(0, vocab, AT_ONCE):
            at = begin + tl.arange(0, AT_ONCE)
            x = tl.load(LOGITS + row_at + at, mask=at < vocab, other=float("nan")).to(tl.float32)
            same = ((_ordered(x) == border) & (at < vocab)).to(tl.int64)
            place = seen + tl.cumsum(same, 0)
            chosen = tl.max(tl.where((same > 0) & (place <= room), at, -1), 0)
            last = tl.where(chosen >= 0, chosen, tl.where(begin == 0, -1, last))
            seen += tl.sum(same, 0)
    tl.store(BORDER + row, border)
    tl.store(LAST + row, last)


@triton.jit
def _stretch_kernel(
    LOGITS, COLUMN, BORDER, LAST, SCORE, TOKEN, TOP, stride, vocab, COLUMNS: tl.constexpr, STRETCH: tl.constexpr,
    CUT: tl.constexpr, BLOCK: tl.constexpr, BLOCK_STEP: tl.constexpr, GOLDEN: tl.constexpr, MIX_1: tl.constexpr,
    MIX_2: tl.constexpr,
):  # fmt: skip
    """One row and stretch: its largest perturbed logit, that token, and the largest logit, NaN where there is one."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    tokens = part * STRETCH + tl.arange(0, STRETCH)
    inside = tokens < vocab
    own = COLUMN + row * COLUMNS
    temperature = tl.load(own).to(tl.float64, bitcast=True)
    x = tl.load(LOGITS + row * stride + tokens, mask=inside, other=float("-inf")).to(tl.float32)
    scores = x.to(tl.float64)
    if temperature > 0:
        seed = tl.load(own + 3)
        position = tl.load(own + 4)
        scores = scores / temperature + _noise(seed, position, tokens, BLOCK, BLOCK_STEP, GOLDEN, MIX_1, MIX_2)
        if CUT:
            order = _ordered(x)
            border = tl.load(BORDER + row)
            kept = (order > border) | ((order == border) & (tokens <= tl.load(LAST + row)))
            scores = tl.where(kept, scores, float("-inf"))
    scores = tl.where(inside, scores, float("-inf"))
    best = tl.max(scores, 0)
    at = row * tl.num_programs(1) + part
    tl.store(SCORE + at, best)
    tl.store(TOKEN + at, tl.min(tl.where((scores == best) & inside, tokens, 2147483647), 0))
    # the sum of what is no number is none; minus infinity is a token that is forbidden
    wrong = tl.sum(tl.where(inside & (x != x), 1, 0), 0)
    tl.store(TOP + at, tl.where(wrong > 0, float("nan"), tl.max(x, 0)))


@triton.jit
def _row_kernel(SCORE, TOKEN, TOP, OUT, parts, NO_TOKEN: tl.constexpr, MOST: tl.constexpr):
    """One row: the largest of its stretches; NO_TOKEN where its largest logit is not finite."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, MOST)
    inside = at < parts
    scores = tl.load(SCORE + row * parts + at, mask=inside, other=float("-inf"))
    tops = tl.load(TOP + row * parts + at, mask=inside, other=float("-inf"))
    tokens = tl.load(TOKEN + row * parts + at, mask=inside, other=2147483647)
    best = tl.max(scores, 0)
    token = tl.min(tl.where(scores == best, tokens, 2147483647), 0).to(tl.int64)
    wrong = tl.sum((tops != tops).to(tl.int32), 0)
    top = tl.max(tl.where(tops != tops, float("inf"), tops), 0)
    finite = (wrong == 0) & (top > float("-inf")) & (top < float("inf"))
    tl.store(OUT + row, tl.where(finite, token, NO_TOKEN))


def packed(columns: Sequence[np.ndarray]) -> Tensor:
    """Temperature and top_p float64, top_k, seeds and positions int64, [N] each in the order of `sampling.choose` →
    int64 [N, COLUMNS], for one copy to the device."""
    return torch.from_numpy(np.stack([np.ascontiguousarray(column).view(np.int64) for column in columns], 1))


def choose(logits: Tensor, columns: Tensor, *, any_cut: bool = True) -> Tensor:
    """The target's token after each row of logits [N, V], int64 [N]; NO_TOKEN where none can be chosen.

    Args:
        columns: `packed`, on the device of the logits.
        any_cut: whether any row has top_k or top_p in force; the host knows.
    """
    rows, vocab = logits.shape
    parts = triton.cdiv(vocab, STRETCH)
    border = last = None
    shape = {"COLUMNS": COLUMNS}
    if any_cut:
        border, last = (torch.empty(rows, dtype=kind, device=logits.device) for kind in (torch.int64, torch.int32))
        at_once = min(AT_ONCE, triton.next_power_of_2(vocab))
        _border_kernel[(rows,)](
            logits, columns, border, last, logits.stride(0), vocab, AT_ONCE=at_once, num_warps=16, **shape
        )
    score = torch.empty(rows, parts, dtype=torch.float64, device=logits.device)
    token = torch.empty(rows, parts, dtype=torch.int32, device=logits.device)
    top = torch.empty(rows, parts, dtype=torch.float32, device=logits.device)
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _stretch_kernel[(rows, parts)](
        *(logits, columns, border, last, score, token, top, logits.stride(0), vocab),
        STRETCH=STRETCH,
        CUT=any_cut,
        BLOCK=BLOCK,
        BLOCK_STEP=BLOCK_STEP,
        GOLDEN=GOLDEN,
        MIX_1=MIX_1,
        MIX_2=MIX_2,
        **shape,
    )
    _row_kernel[(rows,)](*(score, token, top, out, parts), NO_TOKEN=NO_TOKEN, MOST=triton.next_power_of_2(parts))
    return out
