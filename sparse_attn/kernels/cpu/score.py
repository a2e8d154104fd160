"""Scores that policies choose by, on a CPU: `score.cpp` behind torch tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparse_attn.kernels.cpu.attention import KINDS
from sparse_attn.kernels.cpu.build import library
from sparse_attn.kernels.cpu.features import multiplies_bfloat16
from sparse_attn.rows import HeadPages, SequenceRows

TILE = 64  # keys; of score.cpp


class _Call(ctypes.Structure):
    """`LastRows` of score.cpp."""

    _fields_ = [
        *((name, c_void_p) for name in (
            "q", "first_head", "pages", "scales", "page_stride", "block_table", "k_new", "stats", "vertical", "slash",
        )),
        ("k_row", c_int64),
        *((name, c_int32) for name in (
            "sources", "heads", "rows", "dim", "page_size", "context", "length", "block", "tiles", "threads",
            "depth", "page_kind", "new_kind", "products",
        )),
        ("scale", c_float),
    ]  # fmt: skip


class _Scores(ctypes.Structure):
    """`Scores` of score.cpp."""

    _fields_ = [
        *((name, c_void_p) for name in ("q", "keys", "out")),
        *((name, c_int32) for name in ("heads", "rows", "count", "dim", "depth", "columns", "threads")),
    ]


def scores(queries: Tensor, keys: Tensor, kv_heads: Sequence[int]) -> Tensor:
    """q·k of bfloat16 in float32: queries [h, m, X], keys [Hkv, n, X], kv_heads [h], the KV head of each → [h, m, n].

    torch would round every result to bfloat16, which for a score of 100 is half a unit of the exponent.
    """
    heads, rows, dim = queries.shape
    if dim % 2 or not multiplies_bfloat16():
        return torch.stack([queries[i].float() @ keys[own].float().T for i, own in enumerate(kv_heads)])
    queries, keys = pad(queries, (0, -dim % 32)).contiguous(), keys.contiguous()
    count = keys.shape[1]
    out = torch.empty(heads, rows, -(-count // TILE) * TILE)
    addresses = (c_void_p * heads)(*(keys[own].data_ptr() for own in kv_heads))
    call = _Scores(
        queries.data_ptr(), ctypes.addressof(addresses), out.data_ptr(), heads, rows, count, dim,
        queries.shape[2] // 2, out.shape[2], torch.get_num_threads(),
    )  # fmt: skip
    library().folio_scores(ctypes.byref(call))
    return out[..., :count]


def vertical_slash(rows: SequenceRows, heads: Sequence[int], block_k: int, last: int) -> tuple[Tensor, Tensor] | None:
    """`sparse_attn.plan.score.vertical_slash` from the ``last`` rows, reading the pages in place.

    None for what it does not read: blocks that are no whole tiles, and odd numbers of channels in bfloat16.
    """
    pairs = rows.k.dtype == torch.bfloat16 and multiplies_bfloat16()
    if block_k % TILE or (pairs and rows.k.shape[2] % 2):
        return None
    group = rows.q.shape[1] // rows.k.shape[1]
    order = sorted(range(len(heads)), key=lambda i: heads[i])
    kv_heads = [heads[i] // group for i in order]
    wanted = _Wanted(rows, sorted(set(kv_heads)))
    bounds = [kv_heads.index(own) for own in wanted.kv_heads] + [len(heads)]
    count = min(last, rows.num_rows)
    q = rows.q[-count:, [heads[i] for i in order]].transpose(0, 1)
    q = pad(q, (0, -q.shape[-1] % 32)).contiguous() if pairs else (q.float() * rows.scale).contiguous()
    tiles = -(-rows.length // TILE)
    stats = torch.empty(len(heads), count, 4, tiles)
    vertical, slash = torch.zeros(2, len(heads), -(-rows.length // block_k)).unbind()
    call = _Call(
        q=q.data_ptr(), first_head=wanted.hold((c_int32 * len(bounds))(*bounds)), pages=wanted.pages,
        scales=wanted.scales, page_stride=wanted.strides, block_table=wanted.tables, k_new=wanted.new,
        stats=stats.data_ptr(), vertical=vertical.data_ptr(), slash=slash.data_ptr(), k_row=wanted.k_row,
        sources=len(wanted.kv_heads), heads=len(heads), rows=count, dim=rows.k.shape[2], page_size=wanted.page_size,
        context=rows.context_len, length=rows.length, block=block_k, tiles=tiles, threads=torch.get_num_threads(),
        depth=q.shape[-1] // (2 if pairs else 1), page_kind=wanted.kind, new_kind=KINDS[rows.k.dtype],
        products=KINDS[rows.k.dtype], scale=rows.scale if pairs else 1.0,
    )  # fmt: skip
    library().folio_last_rows(ctypes.byref(call))
    back = torch.tensor(order).argsort()
    return vertical[back], slash[back]


class _Wanted:
    """Where the keys of some KV heads lie, and what keeps the addresses alive."""

    def __init__(self, rows: SequenceRows, kv_heads: Sequence[int]) -> None:
        self._kept: list[object] = []
        self.kv_heads = kv_heads
        k = rows.k if rows.k.stride(-1) == 1 else rows.k.contiguous()
        self.k_row = k.stride(0)
        self.new = self._addresses([k[:, head] for head in kv_heads])
        where: dict[int, tuple[HeadPages, int]] = {
            head: (own, i) for own in rows.groups for i, head in enumerate(own.heads)
        }
        found = [where[head] for head in kv_heads] if where else []
        if not all(own.key_pages[:1].is_contiguous() for own, _ in found):
            raise ValueError("each page of keys must be contiguous")
        self.kind = KINDS[found[0][0].key_pages.dtype if found else rows.k.dtype]
        self.page_size = found[0][0].page_size if found else 1
        self.pages = self._addresses([own.key_pages[:, i] for own, i in found])
        scales = [(own.key_scales, own.key_pages, i) for own, i in found]
        self.scales = self._addresses([None if held is None else held[:, i] for held, _, i in scales])
        if any(held is not None and held.stride(0) * pages.shape[3] != pages.stride(0) for held, pages, _ in scales):
            raise ValueError("the scales must lie as the pages do")
        self.tables = self._addresses([own.block_table.to(torch.int32).contiguous() for own, _ in found])
        self.strides = self.hold((c_int64 * len(found))(*(own.key_pages.stride(0) for own, _ in found)))

    def hold(self, array: ctypes.Array) -> int:  # type: ignore[type-arg]
        """The address of an array that lives as long as this does."""
        self._kept.append(array)
        return ctypes.addressof(array)

    def _addresses(self, tensors: Sequence[Tensor | None]) -> int:
        self._kept += tensors
        return self.hold((c_void_p * len(tensors))(*(None if x is None else x.data_ptr() for x in tensors)))
