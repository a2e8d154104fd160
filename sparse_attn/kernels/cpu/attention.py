"""The C++ kernels for tensors on a CPU: `attention.cpp` and `linear.cpp` behind torch tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from sparse_attn.blocks import BlockIndex
from sparse_attn.kernels.cpu.build import library
from sparse_attn.kernels.operands import SKIP_MOST, Pages, Rows, Skip, State
from sparse_attn.kv.quant import SCALE

MAX_HEAD_DIM = 1024
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}  # `Kind` of calls.h


class AttentionCall(ctypes.Structure):
    """`Attention` of calls.h."""

    _fields_ = [
        *((name, c_void_p) for name in (
            "q", "k_new", "v_new", "k_cache", "v_cache", "k_scale", "v_scale", "block_tables", "context_lens",
            "cu_rows", "positions", "tree_masks", "index_counts", "index_ids", "index_cu_rows", "index_first",
            "index_k_offset", "skip_counts", "out", "lse",
        )),
        *((name, c_int64) for name in (
            "q_row", "q_head", "k_row", "k_head", "v_row", "v_head", "page_stride", "table_stride", "index_blocks",
            "index_width",
        )),
        *((name, c_int32) for name in (
            "sequences", "q_heads", "kv_heads", "dim", "page_size", "window", "index_heads", "index_block_k",
            "threads", "q_kind", "new_kind", "page_kind", "out_kind", "products",
        )),
        ("scale", c_float),
        ("softcap", c_float),
        ("skip_share", c_float),
        ("skip_most", c_float),
        ("skip_gate", c_int32),
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

    def __init__(
        self, cu_seqlens: Tensor, context_lens: Tensor, tree_masks: Sequence[Tensor | None] | None = None
    ) -> None:
        self.call = AttentionCall(sequences=len(context_lens))
        self.kept: list[Tensor | ctypes.Array[c_void_p]] = []
        self.out = self.lse = torch.empty(0)
        self.integers("cu_rows", cu_seqlens)
        self.integers("context_lens", context_lens)
        self._trees(tree_masks)

    @classmethod
    def of(cls, rows: Rows) -> Arguments:
        """With the queries and room for what comes of them; what all layers share is made once."""
        shared = rows.kept.get(cls)
        if shared is None:
            shared = rows.kept[cls] = cls(rows.cu_seqlens, rows.context_lens, rows.tree_masks)
        one = cls.__new__(cls)  # the addresses in the copied call are kept alive by what is shared
        one.call, one.kept = AttentionCall.from_buffer_copy(shared.call), []
        count, num_heads, dim = rows.q.shape
        one.heads(num_heads, rows.k.shape[1], dim)
        one.call.q_row, one.call.q_head = one._rows("q", rows.q)
        one.out, one.lse = torch.empty(count, num_heads, dim, dtype=rows.q.dtype), torch.empty(count, num_heads)
        one.products(rows)
        one.call.out, one.call.lse = one.out.data_ptr(), one.lse.data_ptr()
        one.call.scale, one.call.softcap, one.call.window = rows.scale, rows.softcap, rows.window
        return one

    def heads(self, num_heads: int, num_kv_heads: int, dim: int) -> None:
        if dim > MAX_HEAD_DIM or num_heads % num_kv_heads:
            raise ValueError(f"{num_heads} query heads of {dim} do not go with {num_kv_heads} KV heads")
        self.call.q_heads, self.call.kv_heads, self.call.dim = num_heads, num_kv_heads, dim
        self.call.threads = torch.get_num_threads()

    def products(self, rows: Rows) -> None:
        """Products are in the dtype of the new keys; those of bfloat16 take two channels at a time."""
        if rows.k.dtype != rows.v.dtype:
            raise ValueError(f"k and v are {rows.k.dtype} and {rows.v.dtype}")
        self.kinds(rows.q.dtype, rows.k.dtype)
        if rows.k.dtype == torch.bfloat16 and rows.scale <= 0:
            raise ValueError("products of bfloat16 need a positive scale")

    def kinds(self, q: torch.dtype, new: torch.dtype) -> None:
        """Queries and results are of one dtype, new keys and values of another, in which products are."""
        if any(KINDS.get(dtype, 2) == 2 for dtype in (q, new)):
            raise ValueError(f"q, k and v must be float32 or bfloat16, not {q} and {new}")
        if new == torch.bfloat16 and self.call.dim % 2:
            raise ValueError("products of bfloat16 need an even head_dim")
        self.call.q_kind = self.call.out_kind = KINDS[q]
        self.call.new_kind = self.call.products = KINDS[new]

    def new_keys(self, k: Tensor, v: Tensor) -> None:
        self.call.k_row, self.call.k_head = self._rows("k_new", k)
        self.call.v_row, self.call.v_head = self._rows("v_new", v)

    def pages(self, pages: Pages) -> None:
        k, v, scales = pages.k, pages.v, (pages.k_scale, pages.v_scale)
        if not (_pages_contiguous(k) and _pages_contiguous(v) and k.stride(0) == v.stride(0)):
            raise ValueError("each page of keys and values must be contiguous, and all equally far apart")
        if k.dtype != v.dtype or (k.dtype != torch.int8 and KINDS.get(k.dtype) != self.call.products):
            raise ValueError(f"pages of {k.dtype} and {v.dtype} do not go with new keys of another dtype")
        if any((scale is not None) != (k.dtype == torch.int8) for scale in scales):
            raise ValueError("int8 pages need k_scale and v_scale, others must have none")
        for name, scale in zip(("k_scale", "v_scale"), scales, strict=True):
            if scale is None:
                continue
            if not _pages_contiguous(scale) or scale.stride(0) * k.shape[3] != k.stride(0):
                raise ValueError("the scales must lie as the pages do")
            if scale.dtype != SCALE:
                raise ValueError(f"scales are {SCALE}, not {scale.dtype}")
            self.point(name, scale)
        self.point("k_cache", k)
        self.point("v_cache", v)
        self.call.page_kind = KINDS[k.dtype]
        self.call.page_size, self.call.page_stride = pages.page_size, k.stride(0)
        self.integers("block_tables", pages.block_tables)
        self.call.table_stride = pages.block_tables.shape[1]

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

    def skip(self, skip: Skip | None) -> None:
        if skip is None or not skip.share:
            return
        if not skip.counts.is_contiguous() or skip.counts.dtype != torch.int64 or len(skip.counts) != 2:
            raise ValueError("counts of skipped tiles are int64 [2]")
        self.point("skip_counts", skip.counts)
        self.call.skip_share, self.call.skip_most, self.call.skip_gate = skip.share, SKIP_MOST, skip.gate

    def integers(self, name: str, x: Tensor, dtype: torch.dtype = torch.int32) -> None:
        self.point(name, x.to(dtype).contiguous())

    def point(self, name: str, x: Tensor) -> None:
        self.kept.append(x)
        setattr(self.call, name, x.data_ptr())

    def run(self) -> State:
        library().folio_attention(ctypes.byref(self.call))
        return self.out, self.lse

    def _rows(self, name: str, x: Tensor) -> tuple[int, int]:
        """Take x [T, H, D] as it lies; returns its strides over rows and heads."""
        if x.stride(-1) != 1:
            x = x.contiguous()
        self.point(name, x)
        return x.stride(0), x.stride(1)

    def _trees(self, masks: Sequence[Tensor | None] | None) -> None:
        if masks is None or all(mask is None for mask in masks):
            return
        held = [None if mask is None else mask.bool().contiguous() for mask in masks]
        self.kept += [mask for mask in held if mask is not None]
        pointers = (c_void_p * len(held))(*(None if mask is None else mask.data_ptr() for mask in held))
        self.kept.append(pointers)
        self.call.tree_masks = ctypes.cast(pointers, c_void_p)


def _pages_contiguous(pages: Tensor) -> bool:
    """Is each page [H, page_size, …] contiguous? The pages may lie apart."""
    return pages[:1].is_contiguous()


def attention(pages: Pages, rows: Rows, index: BlockIndex | None = None) -> State:
    """`sparse_attn.kernels.dense.attention` in one pass over pages and new rows.

    Products are in the dtype of the new keys, float32 or bfloat16, with sums in float32; pages are of that dtype or
    int8, q of either. The numbers of a row depend on its query and its keys in their order alone; see attention.cpp.
    The positions of a row and of the keys it sees must be consecutive, as those of a causal sequence and of a path of
    a tree are; windows are counted so.

    Raises:
        ValueError: pages that do not lie as the kernel reads them.
    """
    arguments = Arguments.of(rows)
    arguments.new_keys(rows.k, rows.v)
    arguments.pages(pages)
    arguments.index(index)
    arguments.skip(rows.skip)
    return arguments.run()


def paged_attention(pages: Pages, rows: Rows, index: BlockIndex | None = None) -> State:
    """`sparse_attn.kernels.dense.paged_attention`, reading the pages in place.

    Raises:
        ValueError: as `attention`.
    """
    arguments = Arguments.of(rows)
    arguments.pages(pages)
    arguments.index(index)
    if rows.positions is not None:
        arguments.integers("positions", rows.positions, torch.int64)
    return arguments.run()


def ragged_attention(rows: Rows, index: BlockIndex | None = None) -> State:
    """`sparse_attn.kernels.dense.ragged_attention`; of positions as `attention`."""
    arguments = Arguments.of(rows)
    arguments.new_keys(rows.k, rows.v)
    arguments.integers("context_lens", torch.zeros_like(rows.context_lens))
    arguments.index(index)
    return arguments.run()


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
