"""The C++ kernels for float32 tensors on a CPU: `attention.cpp` and `linear.cpp` behind torch tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from sparse_attn.blocks import BlockIndex
from sparse_attn.kernels.cpu.build import library
from sparse_attn.kv.quant import SCALE

MAX_HEAD_DIM = 1024


class AttentionCall(ctypes.Structure):
    """`Attention` of calls.h."""

    _fields_ = [
        *((name, c_void_p) for name in (
            "q", "k_new", "v_new", "k_cache", "v_cache", "k_scale", "v_scale", "block_tables", "context_lens",
            "cu_rows", "positions", "tree_masks", "index_counts", "index_ids", "index_cu_rows", "index_first",
            "index_k_offset", "out", "lse",
        )),
        *((name, c_int64) for name in (
            "q_row", "q_head", "k_row", "k_head", "v_row", "v_head", "page_stride", "table_stride", "index_blocks",
            "index_width",
        )),
        *((name, c_int32) for name in (
            "sequences", "q_heads", "kv_heads", "dim", "page_size", "window", "index_heads", "index_block_k",
            "threads",
        )),
        ("scale", c_float),
        ("softcap", c_float),
    ]  # fmt: skip


class _Linear(ctypes.Structure):
    """`Linear` of calls.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "w", "bias", "y")),
        *((name, c_int64) for name in ("x_row", "w_row", "rows", "inner", "outer")),
        ("threads", c_int32),
    ]


class Arguments:
    """An `AttentionCall` in the making; keeps the tensors alive whose addresses it holds."""

    def __init__(self, num_heads: int, num_kv_heads: int, dim: int, cu_seqlens: Tensor) -> None:
        if dim > MAX_HEAD_DIM or num_heads % num_kv_heads:
            raise ValueError(f"{num_heads} query heads of {dim} do not go with {num_kv_heads} KV heads")
        self.call = AttentionCall(
            threads=torch.get_num_threads(), q_heads=num_heads, kv_heads=num_kv_heads, dim=dim,
            sequences=len(cu_seqlens) - 1,
        )  # fmt: skip
        self.kept: list[Tensor | ctypes.Array[c_void_p]] = []
        self.out = self.lse = torch.empty(0)
        self.integers("cu_rows", cu_seqlens)

    @classmethod
    def of(cls, q: Tensor, num_kv_heads: int, cu_seqlens: Tensor) -> Arguments:
        """With the queries [T, Hq, D] and room for what comes of them."""
        rows, heads, dim = q.shape
        one = cls(heads, num_kv_heads, dim, cu_seqlens)
        one.call.q_row, one.call.q_head = one.rows("q", q)
        one.out, one.lse = torch.empty(rows, heads, dim), torch.empty(rows, heads)
        one.call.out, one.call.lse = one.out.data_ptr(), one.lse.data_ptr()
        return one

    def rows(self, name: str, x: Tensor) -> tuple[int, int]:
        """Take x [T, H, D] as it lies; returns its strides over rows and heads."""
        if x.stride(-1) != 1:
            x = x.contiguous()
        self.point(name, x)
        return x.stride(0), x.stride(1)

    def integers(self, name: str, x: Tensor, dtype: torch.dtype = torch.int32) -> None:
        self.point(name, x.to(dtype).contiguous())

    def point(self, name: str, x: Tensor) -> None:
        self.kept.append(x)
        setattr(self.call, name, x.data_ptr())

    def new_rows(self, k: Tensor, v: Tensor) -> None:
        self.call.k_row, self.call.k_head = self.rows("k_new", k)
        self.call.v_row, self.call.v_head = self.rows("v_new", v)

    def pages(
        self,
        k_cache: Tensor,
        v_cache: Tensor,
        block_tables: Tensor,
        context_lens: Tensor,
        k_scale: Tensor | None,
        v_scale: Tensor | None,
    ) -> None:
        if not (_pages_contiguous(k_cache) and _pages_contiguous(v_cache) and k_cache.stride(0) == v_cache.stride(0)):
            raise ValueError("each page of keys and values must be contiguous, and all equally far apart")
        if (k_cache.dtype == torch.int8) != (k_scale is not None and v_scale is not None):
            raise ValueError("int8 pages need k_scale and v_scale, others must have none")
        if k_scale is not None and v_scale is not None:
            for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
                if not _pages_contiguous(scale) or scale.stride(0) * k_cache.shape[3] != k_cache.stride(0):
                    raise ValueError("the scales must lie as the pages do")
                if scale.dtype != SCALE:
                    raise ValueError(f"scales are {SCALE}, not {scale.dtype}")
                self.point(name, scale)
        self.point("k_cache", k_cache)
        self.point("v_cache", v_cache)
        self.call.page_size, self.call.page_stride = k_cache.shape[2], k_cache.stride(0)
        self.integers("block_tables", block_tables)
        self.call.table_stride = block_tables.shape[1]
        self.integers("context_lens", context_lens)

    def trees(self, masks: Sequence[Tensor | None] | None) -> None:
        if masks is None or all(mask is None for mask in masks):
            return
        held = [None if mask is None else mask.bool().contiguous() for mask in masks]
        self.kept += [mask for mask in held if mask is not None]
        pointers = (c_void_p * len(held))(*(None if mask is None else mask.data_ptr() for mask in held))
        self.kept.append(pointers)
        self.call.tree_masks = ctypes.cast(pointers, c_void_p)

    def index(self, index: BlockIndex | None) -> None:
        if index is None:
            return
        for name in ("counts", "ids", "cu_rows"):
            self.integers(f"index_{name}", getattr(index, name))
        self.integers("index_k_offset", index.k_offset)
        sequences = torch.arange(len(index.q_offset) + 1, dtype=index.block_seq.dtype)
        self.integers("index_first", torch.searchsorted(index.block_seq, sequences))
        self.call.index_heads, self.call.index_blocks, self.call.index_width = index.ids.shape
        self.call.index_block_k = index.block_k

    def run(self, scale: float, softcap: float, window: int) -> tuple[Tensor, Tensor]:
        self.call.scale, self.call.softcap, self.call.window = scale, softcap, window
        library().folio_attention(ctypes.byref(self.call))
        return self.out, self.lse


def _pages_contiguous(pages: Tensor) -> bool:
    """Is each page [H, page_size, …] contiguous? The pages may lie apart."""
    return pages[:1].is_contiguous()


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    cu_seqlens: Tensor,
    *,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
    positions: Tensor | None = None,
    tree_masks: Sequence[Tensor | None] | None = None,
    index: BlockIndex | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`sparse_attn.kernels.dense.attention` in one pass over pages and new rows; int8 pages as for `paged_attention`.

    The numbers of a row depend on its query and its keys in their order alone; see attention.cpp.
    """
    arguments = Arguments.of(q, k.shape[1], cu_seqlens)
    arguments.new_rows(k, v)
    arguments.pages(k_cache, v_cache, block_tables, context_lens, k_scale, v_scale)
    arguments.trees(tree_masks)
    arguments.index(index)
    return arguments.run(scale, softcap, window)


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    cu_seqlens_q: Tensor,
    *,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
    positions: Tensor | None = None,
    index: BlockIndex | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`sparse_attn.kernels.dense.paged_attention`, reading the pages in place.

    The pages may be int8 with the scales of `sparse_attn.kv.quant`: k_scale, v_scale float16 [pages, Hkv, page_size].
    """
    arguments = Arguments.of(q, k_cache.shape[1], cu_seqlens_q)
    arguments.pages(k_cache, v_cache, block_tables, context_lens, k_scale, v_scale)
    arguments.index(index)
    if positions is not None:
        arguments.integers("positions", positions, torch.int64)
    return arguments.run(scale, softcap, window)


def ragged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
    positions: Tensor | None = None,
    tree_masks: Sequence[Tensor | None] | None = None,
    index: BlockIndex | None = None,
) -> tuple[Tensor, Tensor]:
    """`sparse_attn.kernels.dense.ragged_attention`.

    The positions of a row and of the keys it sees must be consecutive, as those of a causal sequence and of a path
    of a tree are; windows are counted so.
    """
    arguments = Arguments.of(q, k.shape[1], cu_seqlens)
    arguments.new_rows(k, v)
    arguments.integers("context_lens", torch.zeros(len(cu_seqlens) - 1, dtype=torch.int32))
    arguments.trees(tree_masks)
    arguments.index(index)
    return arguments.run(scale, softcap, window)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` for float32 whose rows do not depend on how many rows there are.

    x [..., K], weight [N, K], bias [N] → [..., N].
    """
    flat = x.reshape(-1, x.shape[-1])
    if flat.stride(-1) != 1:
        flat = flat.contiguous()
    if weight.stride(-1) != 1:
        raise ValueError("the rows of the weight must be contiguous")
    out = torch.empty(*x.shape[:-1], weight.shape[0])
    bias = bias.contiguous() if bias is not None else None
    call = _Linear(
        flat.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(), out.data_ptr(),
        flat.stride(0), weight.stride(0), flat.shape[0], flat.shape[1], weight.shape[0], torch.get_num_threads(),
    )  # fmt: skip
    library().folio_linear(ctypes.byref(call), c_int32(1))
    return out
