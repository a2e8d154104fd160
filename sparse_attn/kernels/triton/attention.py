"""Attention over pages and over the new rows on a GPU, in Triton: the contract of `sparse_attn.kernels.dense`.

One program serves a tile of queries of one head, or of a whole GQA group when the rows are few (decode, draft trees):
then the group's heads fill the tile's rows and a page is read once for all of them. Over pages the key tile is one
page, a contiguous [page_size, D] block found through the block table; with a `BlockIndex` the program walks its list
of pages. Few rows over a long context are split along the keys and joined by log-sum-exp (Flash-Decoding).

Softmax is online, in base 2. Nothing is read back by the host and all shapes follow from the inputs' shapes, so
launches can be captured in a CUDA graph once every shape has run (see `launch.tuned`).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_attn.blocks import BlockIndex
from sparse_attn.errors import BlockIndexError, UnsupportedModelFeature
from sparse_attn.kernels.operands import Pages, Rows, State
from sparse_attn.kernels.triton.launch import query_tiles, tuned
from sparse_attn.kernels.triton.online_softmax import absorb
from sparse_attn.tree_masks import TreeMasks

ROWS_PER_TILE = 128  # queries a program in prefill
PACKED_ROWS = 256  # rows times heads of a group up to which a query block takes the whole group along
SPLIT_PROGRAMS = 528  # programs wanted before splitting stops: 4 for each of a Hopper GPU's 132 multiprocessors
SPLIT_KEYS = 512  # fewest keys worth a program of their own

# Sizes that change with contexts and company, and views that may begin anywhere: nobody may wait for a compilation.
_CHANGING = ["stride_table", "ids_width", "num_rows", "num_blocks", "num_pairs", "tiles", "splits"]
_SLICED = ["ROW_START", "ROW_COUNT", "BLOCK_SEQ", "POSITIONS", "CU_SEQLENS", "CONTEXT_LENS", "TABLES", "COUNTS", "IDS",
           "K_OFFSET", "TREE_OFFSETS"]  # fmt: skip

# The page's number and its frame are loads that others wait for, which take two of the stages.
_PAGED_CONFIGS = [
    triton.Config({}, num_warps=warps, num_stages=stages) for warps, stages in ((4, 5), (8, 5), (4, 4), (8, 4))
]


@triton.jit
def _store(OUT, LSE, acc, m, total, out_rows, lse_rows, offs_d, wanted, HEAD_DIM: tl.constexpr):
    """Write normalised rows and their natural log-sum-exp; zero and -inf where nothing was visible."""
    safe = tl.where(total > 0, total, 1.0)
    out = acc / safe[:, None]
    lse = tl.where(total > 0, (m + tl.log2(safe)) * 0.6931471805599453, float("-inf"))
    mask = wanted[:, None] & (offs_d < HEAD_DIM)[None, :]
    tl.store(OUT + out_rows[:, None] + offs_d[None, :], out.to(OUT.dtype.element_ty), mask=mask)
    tl.store(LSE + lse_rows, lse, mask=wanted)


@tuned(_PAGED_CONFIGS, key=["HEAD_DIM", "PAGE", "BLOCK_M", "GROUP", "HAS_INDEX", "QUANT"])
@triton.jit(do_not_specialize=_CHANGING, do_not_specialize_on_alignment=_SLICED)
def _paged_kernel(
    Q, K, V, K_SCALE, V_SCALE, OUT, LSE,
    ROW_START, ROW_COUNT, BLOCK_SEQ, POSITIONS, CU_SEQLENS, CONTEXT_LENS, TABLES, COUNTS, IDS,
    qk_scale, softcap, window,
    stride_qt, stride_qh, stride_page, stride_kv_head, stride_table, ids_width, num_rows, num_heads,
    num_blocks, tiles, splits, index_group, kv_group,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAGE: tl.constexpr, BLOCK_M: tl.constexpr, GROUP: tl.constexpr,
    HAS_INDEX: tl.constexpr, HAS_POSITIONS: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr,
    QUANT: tl.constexpr,
):  # fmt: skip
    """Rows of one query block, of GROUP heads, over one share of its pages."""
    block = num_blocks - 1 - tl.program_id(0) // tiles  # the longest first
    tile = tl.program_id(0) % tiles
    head0 = tl.program_id(1) * GROUP
    split = tl.program_id(2)
    seq = tl.load(BLOCK_SEQ + block)
    context = tl.load(CONTEXT_LENS + seq)
    first_row = tl.load(ROW_START + block)

    offs_m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, PAGE)
    offs_d = tl.arange(0, BLOCK_D)
    row = first_row + offs_m // GROUP
    head = head0 + offs_m % GROUP
    row_count = tl.load(ROW_COUNT + block)
    wanted = offs_m // GROUP < row_count
    in_head = offs_d < HEAD_DIM
    q_rows = row.to(tl.int64) * stride_qt + head * stride_qh
    q = tl.load(Q + q_rows[:, None] + offs_d[None, :], mask=wanted[:, None] & in_head[None, :], other=0.0)
    if HAS_POSITIONS:
        position = tl.load(POSITIONS + row, mask=wanted, other=2147483647)
    else:
        position = tl.where(wanted, context + row - tl.load(CU_SEQLENS + seq), 2147483647)

    first_page = 0
    if HAS_INDEX:
        index_row = (head0 // index_group) * num_blocks + block
        count = tl.load(COUNTS + index_row)
    else:
        count = (context + PAGE - 1) // PAGE
        if WINDOW:
            first_page = tl.maximum(tl.min(position, 0) - window + 1, 0) // PAGE
            first_page = tl.minimum(first_page, count).to(tl.int32)
            count = count - first_page
    count = tl.where(row_count > tile * BLOCK_M // GROUP, count, 0)  # an empty tile reads nothing
    share = (count + splits - 1) // splits
    begin = split * share
    end = tl.minimum(begin + share, count)

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    kv_head = head0 // kv_group
    for i in range(begin, end):
        if HAS_INDEX:
            page = tl.load(IDS + index_row.to(tl.int64) * ids_width + i)
        else:
            page = first_page + i
        frame = tl.load(TABLES + seq.to(tl.int64) * stride_table + page).to(tl.int64)
        tile_start = frame * stride_page + kv_head * stride_kv_head
        key = page * PAGE + offs_n
        present = key < context
        offsets = offs_n * HEAD_DIM
        k = tl.load(
            K + tile_start + offsets[None, :] + offs_d[:, None],
            mask=present[None, :] & in_head[:, None],
            other=0.0,
        )
        v = tl.load(
            V + tile_start + offsets[:, None] + offs_d[None, :],
            mask=present[:, None] & in_head[None, :],
            other=0.0,
        )
        k_scale = 1.0
        v_scale = 1.0
        if QUANT:
            scales = tile_start // HEAD_DIM + offs_n
            k_scale = tl.load(K_SCALE + scales, mask=present, other=0.0).to(tl.float32)
            v_scale = tl.load(V_SCALE + scales, mask=present, other=0.0).to(tl.float32)
        visible = wanted[:, None] & present[None, :]
        if WINDOW:
            visible = visible & (key[None, :] > position[:, None] - window)
        acc, m, total = absorb(q, k, v, k_scale, v_scale, acc, m, total, qk_scale, softcap, CAP, QUANT, visible, True)

    slot = split.to(tl.int64) * num_rows + row
    lse_rows = slot * num_heads + head
    _store(OUT, LSE, acc, m, total, lse_rows * HEAD_DIM, lse_rows, offs_d, wanted, HEAD_DIM)


@triton.jit(do_not_specialize=_CHANGING)
def _join_kernel(
    PART_OUT, PART_LSE, OUT, LSE, num_pairs, splits, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Join the parts of one row and head by log-sum-exp."""
    pair = tl.program_id(0).to(tl.int64)
    offs_d = tl.arange(0, BLOCK_D)
    m = tl.load(PART_LSE + pair)
    for i in range(1, splits):
        m = tl.maximum(m, tl.load(PART_LSE + i * num_pairs + pair))
    base = tl.where(m == float("-inf"), 0.0, m)
    total = 0.0
    acc = tl.zeros([BLOCK_D], tl.float32)
    for i in range(splits):
        weight = tl.exp2((tl.load(PART_LSE + i * num_pairs + pair) - base) * 1.4426950408889634)
        part = tl.load(PART_OUT + (i * num_pairs + pair) * HEAD_DIM + offs_d, mask=offs_d < HEAD_DIM, other=0.0)
        total += weight
        acc += weight * part
    safe = tl.where(total > 0, total, 1.0)
    out = (acc / safe).to(OUT.dtype.element_ty)
    tl.store(OUT + pair * HEAD_DIM + offs_d, out, mask=offs_d < HEAD_DIM)
    tl.store(LSE + pair, tl.where(total > 0, base + tl.log2(safe) * 0.6931471805599453, float("-inf")))


_RAGGED_CONFIGS = [
    triton.Config({}, num_warps=warps, num_stages=stages) for warps, stages in ((8, 3), (4, 3), (8, 2), (4, 2))
]


@tuned(_RAGGED_CONFIGS, key=["HEAD_DIM", "BLOCK_M", "BLOCK_N", "GROUP", "HAS_INDEX", "TREE"])
@triton.jit(do_not_specialize=_CHANGING, do_not_specialize_on_alignment=_SLICED)
def _ragged_kernel(
    Q, K, V, OUT, LSE,
    ROW_START, ROW_COUNT, BLOCK_SEQ, POSITIONS, CU_SEQLENS, K_OFFSET, COUNTS, IDS, TREES, TREE_OFFSETS,
    qk_scale, softcap, window,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, ids_width, num_heads, num_blocks,
    tiles, index_group, kv_group,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_INDEX: tl.constexpr, HAS_POSITIONS: tl.constexpr, TREE: tl.constexpr, WINDOW: tl.constexpr,
    CAP: tl.constexpr,
):  # fmt: skip
    """Rows of one query block, of GROUP heads, over the new keys of their own sequence."""
    block = num_blocks - 1 - tl.program_id(0) // tiles  # the longest first
    tile = tl.program_id(0) % tiles
    head0 = tl.program_id(1) * GROUP
    seq = tl.load(BLOCK_SEQ + block)
    begin_seq = tl.load(CU_SEQLENS + seq)
    length = tl.load(CU_SEQLENS + seq + 1) - begin_seq
    local0 = tl.load(ROW_START + block) - begin_seq
    row_count = tl.load(ROW_COUNT + block)

    offs_m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    local = local0 + offs_m // GROUP
    row = begin_seq + local
    head = head0 + offs_m % GROUP
    wanted = offs_m // GROUP < row_count
    in_head = offs_d < HEAD_DIM
    q_rows = row.to(tl.int64) * stride_qt + head * stride_qh
    q = tl.load(Q + q_rows[:, None] + offs_d[None, :], mask=wanted[:, None] & in_head[None, :], other=0.0)
    if HAS_POSITIONS:
        position = tl.load(POSITIONS + row, mask=wanted, other=0)
    else:
        position = local

    tree = -1
    if TREE:
        tree = tl.load(TREE_OFFSETS + seq)
    last = local0 + tl.minimum(row_count, tile * BLOCK_M // GROUP + (BLOCK_M + GROUP - 1) // GROUP) - 1
    origin = 0
    if HAS_INDEX:
        index_row = (head0 // index_group) * num_blocks + block
        count = tl.load(COUNTS + index_row)
        origin = tl.load(K_OFFSET + seq)
    else:
        count = (last + BLOCK_N) // BLOCK_N
    count = tl.where(row_count > tile * BLOCK_M // GROUP, count, 0)

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    kv_head = head0 // kv_group
    for i in range(count):
        if HAS_INDEX:
            first_key = tl.load(IDS + index_row.to(tl.int64) * ids_width + i) * BLOCK_N - origin
        else:
            first_key = i * BLOCK_N
        key = first_key + offs_n
        present = (key >= 0) & (key < length)
        key_row = (begin_seq + key).to(tl.int64)
        k = tl.load(
            K + key_row[None, :] * stride_kt + kv_head * stride_kh + offs_d[:, None],
            mask=present[None, :] & in_head[:, None],
            other=0.0,
        )
        v = tl.load(
            V + key_row[:, None] * stride_vt + kv_head * stride_vh + offs_d[None, :],
            mask=present[:, None] & in_head[None, :],
            other=0.0,
        )
        visible = wanted[:, None] & present[None, :]
        if TREE:
            is_tree = (tree + tl.zeros([BLOCK_N], tl.int64))[None, :] >= 0
            ancestors = TREES + tree + (local[:, None] * length + key[None, :])  # n * n fits 32 bits
            of_tree = tl.load(ancestors, mask=visible & is_tree, other=0) != 0
            visible = visible & tl.where(is_tree, of_tree, key[None, :] <= local[:, None])
        else:
            visible = visible & (key[None, :] <= local[:, None])
        if WINDOW:
            key_position = key
            if HAS_POSITIONS:
                key_position = tl.load(POSITIONS + key_row, mask=present, other=0)
            visible = visible & (key_position[None, :] > position[:, None] - window)
        acc, m, total = absorb(q, k, v, 1.0, 1.0, acc, m, total, qk_scale, softcap, CAP, False, visible, True)

    lse_rows = row.to(tl.int64) * num_heads + head
    _store(OUT, LSE, acc, m, total, lse_rows * HEAD_DIM, lse_rows, offs_d, wanted, HEAD_DIM)


def paged_attention(pages: Pages, rows: Rows, index: BlockIndex | None = None) -> State:
    """As `sparse_attn.kernels.dense.paged_attention`.

    Raises:
        BlockIndexError: the index has blocks that are no pages.
    """
    launch = _Launch(rows, index)
    splits = launch.splits(pages)
    out, lse = launch.buffers(splits, torch.float32 if splits > 1 else rows.q.dtype)
    launch.paged(out, lse, splits, pages)
    return (out[0], lse[0]) if splits == 1 else _join(out, lse, rows.q)


def ragged_attention(rows: Rows, index: BlockIndex | None = None) -> State:
    """As `sparse_attn.kernels.dense.ragged_attention`."""
    launch = _Launch(rows, index)
    out, lse = launch.buffers(1, rows.q.dtype)
    launch.ragged(out[0], lse[0])
    return out[0], lse[0]


def attention(pages: Pages, rows: Rows, index: BlockIndex | None = None) -> State:
    """As `sparse_attn.kernels.dense.attention`: the splits over the context and the new rows are joined in one go.

    Raises:
        BlockIndexError: the index has blocks that are no pages.
        UnsupportedModelFeature: tiles may be left out, which only rows in pages do (`skipping`).
    """
    if rows.skip is not None:
        raise UnsupportedModelFeature("on a GPU skip leaves out tiles of dense attention alone: join it with no other")
    past_index, new_index = index.split() if index is not None else (None, None)
    past, new = _Launch(rows, past_index), _Launch(rows, new_index)
    splits = past.splits(pages)
    out, lse = past.buffers(splits + 1, torch.float32)
    past.paged(out, lse, splits, pages)
    new.ragged(out[splits], lse[splits])
    return _join(out, lse, rows.q)


class _Launch:
    """How a batch of rows is cut into programs, and the launches themselves."""

    def __init__(self, rows: Rows, index: BlockIndex | None) -> None:
        self.rows, self.index, self.kv_heads = rows, index, rows.k.shape[1]
        self.num_rows, self.num_heads, self.head_dim = rows.q.shape
        group = self.num_heads // self.kv_heads
        self.starts, self.counts, self.seqs, block_q = _query_blocks(rows, index, group)
        shared = index is None or index.num_heads == self.kv_heads
        self.group = group if shared and block_q * group <= PACKED_ROWS else 1
        packed = block_q * self.group
        self.tile_rows = min(ROWS_PER_TILE, max(16, triton.next_power_of_2(packed)))
        self.tiles = triton.cdiv(packed, self.tile_rows)
        self.grid = (len(self.starts) * self.tiles, self.num_heads // self.group)

    def splits(self, pages: Pages) -> int:
        """Into how many parts to cut the keys, so that the GPU is full and no part is tiny; a power of two."""
        most_pages = pages.block_tables.shape[1] if self.index is None else self.index.ids.shape[-1]
        programs = max(1, self.grid[0] * self.grid[1])
        wanted = min(SPLIT_PROGRAMS // programs, most_pages * pages.page_size // SPLIT_KEYS, 64)
        return 1 << (wanted.bit_length() - 1) if wanted > 1 else 1

    def buffers(self, parts: int, dtype: torch.dtype) -> State:
        """out [parts, T, Hq, D] and lse float32 [parts, T, Hq]; rows in no query block see nothing."""
        shape = (parts, self.num_rows, self.num_heads)
        covered = self.index is None  # every row is in a tile, and each tile writes its rows
        out = self.rows.q.new_empty(*shape, self.head_dim, dtype=dtype)
        lse = self.rows.q.new_empty(shape, dtype=torch.float32)
        return (out, lse) if covered else (out.zero_(), lse.fill_(-torch.inf))

    def paged(self, out: Tensor, lse: Tensor, splits: int, pages: Pages) -> None:
        """Rows over pages, into the first ``splits`` parts of out and lse."""
        index, rows, page_size = self.index, self.rows, pages.page_size
        if index is not None and index.block_k != page_size:
            raise BlockIndexError(f"the index has blocks of {index.block_k} keys, the pages hold {page_size}: refine()")
        if not self.grid[0]:
            return
        _paged_kernel[(*self.grid, splits)](
            *(rows.q, pages.k, pages.v, pages.k_scale, pages.v_scale, out, lse, self.starts, self.counts, self.seqs),
            *(rows.positions, rows.cu_seqlens, rows.context_lens, pages.block_tables),
            *((index.counts, index.ids) if index is not None else (None, None)),
            *(float(rows.scale), float(rows.softcap), int(rows.window)),
            *(rows.q.stride(0), rows.q.stride(1), pages.k.stride(0), pages.k.stride(1), pages.block_tables.stride(0)),
            *(index.ids.shape[-1] if index is not None else 0, self.num_rows, self.num_heads),
            *(len(self.starts), self.tiles, splits, self._index_group(), self.num_heads // self.kv_heads),
            PAGE=page_size,
            QUANT=pages.k_scale is not None,
            **self._constants(),
        )

    def ragged(self, out: Tensor, lse: Tensor) -> None:
        """Rows over the new rows of their sequence, into out [T, Hq, D] and lse [T, Hq]."""
        if not self.grid[0]:
            return
        index, rows = self.index, self.rows
        trees, tree_offsets = _packed_trees(rows)
        _ragged_kernel[self.grid](
            *(rows.q, rows.k, rows.v, out, lse, self.starts, self.counts, self.seqs, rows.positions, rows.cu_seqlens),
            *((index.k_offset, index.counts, index.ids) if index is not None else (None, None, None)),
            *(trees, tree_offsets, float(rows.scale), float(rows.softcap), int(rows.window)),
            *(rows.q.stride(0), rows.q.stride(1)),
            *(rows.k.stride(0), rows.k.stride(1), rows.v.stride(0), rows.v.stride(1)),
            *(index.ids.shape[-1] if index is not None else 0, self.num_heads, len(self.starts)),
            *(self.tiles, self._index_group(), self.num_heads // self.kv_heads),
            BLOCK_N=index.block_k if index is not None else 64,
            TREE=trees is not None,
            **self._constants(),
        )

    def _index_group(self) -> int:
        return self.num_heads // self.index.num_heads if self.index is not None else 1

    def _constants(self) -> dict[str, Any]:
        return {
            "HEAD_DIM": self.head_dim,
            "BLOCK_D": _block_d(self.head_dim),
            "BLOCK_M": self.tile_rows,
            "GROUP": self.group,
            "HAS_INDEX": self.index is not None,
            "HAS_POSITIONS": self.rows.positions is not None,
            "WINDOW": self.rows.window > 0,
            "CAP": self.rows.softcap > 0,
        }


def _join(parts: Tensor, lses: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """parts float32 [n, T, Hq, D], lses [n, T, Hq] → out [T, Hq, D] in the dtype of q, lse [T, Hq]."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty_like(lses[0])
    pairs = lse.numel()
    if pairs:
        dim = q.shape[2]
        _join_kernel[(pairs,)](parts, lses, out, lse, pairs, len(parts), HEAD_DIM=dim, BLOCK_D=_block_d(dim))
    return out, lse


def _query_blocks(rows: Rows, index: BlockIndex | None, group: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """(first row, rows, sequence) of each query block int32, and the most rows one has."""
    if index is not None:
        starts = index.cu_rows[:-1]
        return starts, (index.cu_rows[1:] - starts).contiguous(), index.block_seq, index.block_q
    sequences = len(rows.cu_seqlens) - 1
    rows_each = triton.next_power_of_2(triton.cdiv(len(rows.q), max(sequences, 1)))
    block_q = rows_each if rows_each * group <= PACKED_ROWS else ROWS_PER_TILE
    return *query_tiles(rows, block_q), block_q


def _block_d(head_dim: int) -> int:
    return max(16, triton.next_power_of_2(head_dim))


def _packed_trees(rows: Rows) -> tuple[Tensor | None, Tensor | None]:
    """All tree masks flat as uint8, and where each begins (-1: causal); None where no sequence carries a tree."""
    masks = rows.tree_masks
    if masks is not None and not isinstance(masks, TreeMasks):
        if _packed_trees not in rows.kept:
            rows.kept[_packed_trees] = TreeMasks.pack(masks, rows.q.device)
        masks = rows.kept[_packed_trees]
    return (masks.flat, masks.offsets) if masks is not None else (None, None)
