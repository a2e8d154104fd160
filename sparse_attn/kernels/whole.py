"""Dense attention of long runs of rows by other people's kernels: flash-attn, torch's SDPA and FlexAttention.

They know no pages, so a sequence's context is gathered first: for hundreds of rows that costs a hundredth of the
attention itself, and the best dense kernels of a GPU are theirs. Short runs (decode, draft trees) and everything sparse
stay with the kernels that read pages in place.

All have one contract, `Whole`: q [n, Hq, D] are the last n rows of a causal sequence, k and v [m, Hkv, D] all its keys
and values → [n, Hq, D].
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sparse_attn.errors import UnsupportedModelFeature
from sparse_attn.host_values import host_list
from sparse_attn.kernels.dense import merge_states
from sparse_attn.kernels.operands import Pages, Rows, State
from sparse_attn.kernels.work import PREFILL_ROWS

Whole = Callable[[Tensor, Tensor, Tensor, float, float, int], Tensor]
"""(q, k, v, scale, soft cap or 0, window or 0) → out."""


def flash_attn(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float, window: int) -> Tensor:
    """flash-attn (arXiv 2307.08691): float16 and bfloat16 on a GPU."""
    from flash_attn import flash_attn_func

    limits = (window - 1, 0) if window else (-1, -1)
    out: Tensor = flash_attn_func(
        q[None], k[None], v[None], softmax_scale=scale, causal=True, window_size=limits, softcap=softcap
    )
    return out[0]


def sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float, window: int) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`, which picks cuDNN's, its own flash or another kernel.

    cuDNN's, the fastest on Hopper, knows no rows behind a context: there the context and the chunk, which it knows,
    are attended one by one and joined.
    """
    from torch.nn.attention.bias import causal_lower_right

    assert not softcap
    assert not window
    rows, keys = len(q), len(k)
    queries, all_keys, values = (x.transpose(0, 1)[None] for x in (q, k, v))
    before = keys - rows
    if before and _joins(q.device, q.dtype):
        past = _cudnn(queries, all_keys[:, :, :before], values[:, :, :before], scale, causal=False)
        return merge_states(
            *past, *_cudnn(queries, all_keys[:, :, before:], values[:, :, before:], scale, causal=True)
        )[0]
    causal: dict[str, Any] = {"attn_mask": causal_lower_right(rows, keys)} if before else {"is_causal": True}
    out = torch.nn.functional.scaled_dot_product_attention(
        queries, all_keys, values, scale=scale, enable_gqa=True, **causal
    )
    return out[0].transpose(0, 1)


def _cudnn(q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool) -> State:
    """q [1, Hq, n, D], k and v [1, Hkv, m, D]."""
    attend = torch.ops.aten._scaled_dot_product_cudnn_attention
    out, lse, *_ = attend(q, k, v, None, True, 0.0, causal, False, scale=scale)
    return out[0].transpose(0, 1), lse.reshape(q.shape[1:3]).transpose(0, 1)


@functools.cache
def _joins(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether cuDNN's kernel is here and gives the log-sum-exp that parts are joined by; tried once."""
    if device.type != "cuda":
        return False
    q, k, v = (torch.randn(n, heads, 64, device=device, dtype=dtype) for n, heads in ((128, 4), (256, 2), (256, 2)))
    queries, keys, values = (x.transpose(0, 1)[None] for x in (q, k, v))
    try:
        _, lse = _cudnn(queries, keys, values, 0.125, causal=False)
        scores = torch.einsum("hgnd,hmd->hgnm", queries[0].float().unflatten(0, (2, 2)), keys[0].float()) * 0.125
        return torch.allclose(lse.float(), scores.logsumexp(-1).flatten(0, 1).T, atol=0.05)
    except RuntimeError:
        return False


def flex(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float, window: int) -> Tensor:
    """FlexAttention (torch), compiled on a GPU: soft caps and windows of any size."""
    from torch.nn.attention.flex_attention import create_block_mask

    rows, keys = len(q), len(k)
    first_row = keys - rows

    def visible(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        position = row + first_row
        seen = key <= position
        return seen & (key > position - window) if window else seen

    def capped(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    attend = _compiled_flex(q.device.type)
    mask = create_block_mask(visible, None, None, rows, keys, device=q.device.type)
    out = attend(
        *(x.transpose(0, 1)[None].contiguous() for x in (q, k, v)),
        score_mod=capped if softcap else None,
        block_mask=mask,
        scale=scale,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)


@functools.cache
def _compiled_flex(device: str) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    attend: Any = flex_attention
    return torch.compile(attend, dynamic=True) if device == "cuda" else attend


WHOLE: dict[str, Whole] = {"flash-attn": flash_attn, "sdpa": sdpa, "flex": flex}


def find_whole(name: str, device: torch.device, dtype: torch.dtype) -> Whole:
    """The back end of that name.

    Raises:
        UnsupportedModelFeature: it is not installed, or does not know the device or dtype; says what would help.
    """
    if name == "flash-attn":
        if find_spec("flash_attn") is None:
            raise UnsupportedModelFeature(
                "the attention back end flash-attn is not installed; with nvcc at hand, pip install "
                "--no-build-isolation 'folio-serve[flash-attn]' builds it"
            )
        if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
            raise UnsupportedModelFeature(
                f"flash-attn computes bfloat16 and float16 on a GPU, not {str(dtype).removeprefix('torch.')} on "
                f"{device.type}; choose sdpa or flex"
            )
    return WHOLE[name]


@functools.cache
def best_whole(device: torch.device, dtype: torch.dtype) -> str | None:
    """The back end that is best for long dense runs here; None where our own kernels are, or nothing is known."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return None
    return "flash-attn" if find_spec("flash_attn") is not None else "sdpa"


def attend_whole(whole: Whole, pages: Pages, rows: Rows) -> Tensor | None:
    """Every sequence's new rows over its context and themselves: [T, Hq, D].

    None where a sequence has too few rows for it to pay, or where SDPA would need a mask: our kernel needs none.
    """
    if whole is sdpa and (rows.softcap or rows.window):
        return None
    if len(rows.q) < PREFILL_ROWS * len(rows.context_lens):  # one has; of a captured step no more is to be known
        return None
    bounds = host_list(rows.cu_seqlens)
    if any(end - begin < PREFILL_ROWS for begin, end in pairwise(bounds)):
        return None
    out = torch.empty_like(rows.q)
    for s, length in enumerate(host_list(rows.context_lens)):
        own = slice(bounds[s], bounds[s + 1])
        keys, values = rows.k[own], rows.v[own]
        if length:
            held = (part.transpose(0, 1) for part in pages.gather(s, length, keys.dtype))
            keys, values = (torch.cat(parts) for parts in zip(held, (keys, values), strict=True))
        out[own] = whole(rows.q[own].to(keys.dtype), keys, values, rows.scale, rows.softcap, rows.window)
    return out
