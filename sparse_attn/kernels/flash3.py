"""flash-attn 3 (arXiv 2407.08608) over pages, where its library is installed: Hopper GPUs, float16 and bfloat16.

Its kernel reads keys through a block table, so decode, chunks and both together are one call. Draft trees and int8
pages it does not know; those stay with our kernel.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from sparse_attn.errors import UnsupportedModelFeature
from sparse_attn.kernels.operands import InPages, Pages, Rows

NAME = "flash-attn-3"


def check(device: torch.device, dtype: torch.dtype) -> None:
    """Refuse what it is not here for.

    Raises:
        UnsupportedModelFeature: says what would help.
    """
    if find_spec("flash_attn_interface") is None:
        raise UnsupportedModelFeature(
            f"the attention back end {NAME} is not installed; build it from the folder hopper of flash-attention"
        )
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        raise UnsupportedModelFeature(f"{NAME} computes bfloat16 and float16 on a GPU; choose another back end")


def over(own: InPages) -> InPages:
    """flash-attn 3 for what it knows, and ``own`` for the rest."""
    from flash_attn_interface import flash_attn_with_kvcache

    def in_pages(pages: Pages, rows: Rows) -> Tensor:
        if rows.tree_masks is not None or pages.k_scale is not None or rows.skip is not None:
            return own(pages, rows)
        lengths = rows.context_lens + rows.cu_seqlens[1:] - rows.cu_seqlens[:-1]
        longest = (
            pages.block_tables.shape[1] * pages.page_size
        )  # the padding of a captured step has more rows than that
        out: Tensor = flash_attn_with_kvcache(
            rows.q,
            *(side.transpose(1, 2) for side in (pages.k, pages.v)),  # [pages, page_size, Hkv, D]
            cache_seqlens=lengths.clamp(max=longest).to(torch.int32),
            page_table=pages.block_tables,
            cu_seqlens_q=rows.cu_seqlens,
            max_seqlen_q=len(rows.q),
            softmax_scale=rows.scale,
            causal=True,
            window_size=(rows.window - 1, 0) if rows.window else (-1, -1),
            softcap=rows.softcap,
        )
        return out

    return in_pages
