"""Linear layers whose weights stay as they are stored: bfloat16, int8 a row, the blocks of GGUF files.

A weight is packed once, into the order that `packed_linear.cpp` streams it in (blocks.h), at its stored size but for a
few percent. Products are of float32, or of bfloat16 where the processor has instructions for them: then weights and
activations are rounded to bfloat16 as they enter a product, and sums are float32. Or, if that is asked for, activations
are rounded to int8, with a scale for every 32 of a row, and multiply weights of integers as they are stored. Either way
a row's bits do not depend on the rows beside it.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from ctypes import c_int32, c_int64, c_void_p
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sparse_attn.kernels.cpu import features
from sparse_attn.kernels.cpu.build import library
from sparse_attn.kv.huge_pages import empty

KINDS = ("BF16", "F16", "INT8", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_K", "Q6_K")
"""In the order of `Storage` in blocks.h. INT8 has one float32 scale a row; the others are ggml's."""

Products = Literal["float32", "bfloat16", "int8"]
PRODUCTS: tuple[Products, ...] = get_args(Products)
"""In the order of `Products` in packed.h."""

PANEL = 16
"""Rows whose tiles lie together (TILE_ROWS of blocks.h)."""

_BLOCK_BYTES = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}
_BLOCK = {kind: 256 if kind.endswith("K") else 32 for kind in _BLOCK_BYTES}
_NUMBER_BYTES = {"BF16": 2, "F16": 2, "INT8": 1}


class _Pack(ctypes.Structure):
    """`Pack` of packed.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("rows", "order", "packed")),
        *((name, c_int64) for name in ("row_bytes", "outer", "inner")),
        *((name, c_int32) for name in ("kind", "threads")),
    ]


class _Unpack(ctypes.Structure):
    """`Unpack` of packed.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("packed", "scale", "ids", "y")),
        *((name, c_int64) for name in ("count", "inner")),
        *((name, c_int32) for name in ("kind", "threads")),
    ]


class PackedLinearCall(ctypes.Structure):
    """`PackedLinear` of packed.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "w", "scale", "bias", "y")),
        *((name, c_int64) for name in ("x_row", "rows", "inner", "outer")),
        *((name, c_int32) for name in ("kind", "threads", "products")),
    ]


class _Room:
    """Memory for the weights of layer after layer in huge pages, of which one alone would fill none.

    A decode step streams over all weights: in small pages it would wait for addresses and, at each page's end, for the
    processor's prefetching to begin anew.
    """

    BLOCK = 16 << 20

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)
        self._lock = threading.Lock()

    def take(self, count: int) -> Tensor:
        """uint8 [count], at the beginning of a cache line."""
        with self._lock:
            if count > len(self._block):
                block = empty([max(count, self.BLOCK) + 64], torch.uint8)
                if count >= self.BLOCK:
                    return block[-block.data_ptr() % 64 :][:count]
                self._block = block[-block.data_ptr() % 64 :]
            taken, self._block = self._block[:count], self._block[-(-count // 64) * 64 :]
            return taken


_room = _Room()


@dataclass(frozen=True)
class PackedWeight:
    """A matrix [outer, inner] in panels.

    Attributes:
        kind: one of ``KINDS``.
        data: uint8, the panels.
        scale: float32 [outer] of its rows, for INT8 only.
        products: what they are of.
    """

    kind: str
    outer: int
    inner: int
    data: Tensor
    scale: Tensor | None
    products: Products

    @property
    def num_bytes(self) -> int:
        return self.data.numel() + (0 if self.scale is None else 4 * self.outer)

    def narrow(self, start: int, count: int) -> PackedWeight:
        """The matrix of `count` rows from ``start`` on, over the same panels.

        Raises:
            ValueError: they do not begin with a panel.
        """
        if start % PANEL or not 0 <= start <= start + count <= self.outer:
            raise ValueError(f"rows {start} to {start + count} of {self.outer} do not begin with a panel of {PANEL}")
        size = len(self.data) // -(-self.outer // PANEL)
        data = self.data[start // PANEL * size : -(-(start + count) // PANEL) * size]
        scale = None if self.scale is None else self.scale[start : start + count]
        return PackedWeight(self.kind, count, self.inner, data, scale, self.products)

    def rows(self, ids: Tensor) -> Tensor:
        """The rows of the matrix that ids [...] name, float32 [..., inner].

        Raises:
            IndexError: there is no such row.
        """
        flat = ids.reshape(-1).to(torch.int64).contiguous()
        if len(flat) and not 0 <= int(flat.min()) <= int(flat.max()) < self.outer:
            raise IndexError(f"rows {int(flat.min())} to {int(flat.max())} of a matrix that has {self.outer}")
        out = torch.empty(*ids.shape, self.inner)
        call = _Unpack(
            self.data.data_ptr(), _address(self.scale), flat.data_ptr(), out.data_ptr(), len(flat), self.inner,
            KINDS.index(self.kind), torch.get_num_threads(),
        )  # fmt: skip
        library().folio_unpack_rows(ctypes.byref(call))
        return out


def products_with(kind: str, wanted: Products) -> Products:
    """What products with weights of a kind are of, where ``wanted`` is asked for.

    int8 is for weights of integers, bfloat16 for a processor that has instructions for it; else they are float32.
    """
    if wanted == "int8" and kind not in ("BF16", "F16"):
        return "int8"
    return "bfloat16" if wanted != "float32" and features.multiplies_bfloat16() else "float32"


def pack(
    rows: Tensor,
    kind: str,
    inner: int,
    *,
    order: Tensor | None = None,
    scale: Tensor | None = None,
    products: Products,
) -> PackedWeight:
    """Pack a matrix.

    Args:
        rows: uint8 [outer, bytes a row], the matrix as its kind is stored, on the CPU; a row's bytes lie together.
        inner: columns.
        order: int64 [outer], which of the rows is row n; None for n.
        scale: float32 [outer], for INT8.
        products: what they shall be of, where that is possible (`products_with`).

    Raises:
        ValueError: rows that are not of this kind and length.
    """
    outer = len(rows)
    if (
        kind not in KINDS
        or rows.dtype != torch.uint8
        or rows.stride(-1) != 1
        or rows.shape[1] != row_bytes(kind, inner)
    ):
        raise ValueError(f"rows {rows.dtype} {list(rows.shape)} are not {inner} columns of {kind}")
    if (scale is not None) != (kind == "INT8"):
        raise ValueError(f"a scale a row goes with INT8 alone, not with {kind}")
    if order is not None:
        order = order.to(torch.int64).contiguous()
        if order.shape != (outer,) or not 0 <= int(order.min()) <= int(order.max()) < outer:
            raise ValueError(f"an order {list(order.shape)} is not one of {outer} rows")
    number = KINDS.index(kind)
    size = library().folio_packed_bytes
    size.restype = c_int64
    data = _room.take(size(c_int32(number), c_int64(outer), c_int64(inner)))
    call = _Pack(
        rows.data_ptr(), _address(order), data.data_ptr(), rows.stride(0), outer, inner, number,
        torch.get_num_threads(),
    )  # fmt: skip
    library().folio_pack(ctypes.byref(call))
    scale = None if scale is None else scale.float().contiguous()
    return PackedWeight(kind, outer, inner, data, scale, products_with(kind, products))


def pack_tensor(weight: Tensor, kind: str, *, products: Products) -> PackedWeight:
    """Pack a float matrix as BF16, F16 or INT8, to which it is rounded; INT8 by the largest number of each row."""
    if kind == "INT8":
        weight = weight.float()
        scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        return pack((weight / scale[:, None]).round().to(torch.int8).view(torch.uint8), kind, weight.shape[1],
                    scale=scale, products=products)  # fmt: skip
    plain = weight.to({"BF16": torch.bfloat16, "F16": torch.float16}[kind]).contiguous()
    return pack(plain.view(torch.uint8), kind, weight.shape[1], products=products)


def row_bytes(kind: str, inner: int) -> int:
    """Bytes of a row of ``inner`` columns as its kind is stored; 0 where the kind has no such row."""
    if kind in _NUMBER_BYTES:
        return inner * _NUMBER_BYTES[kind]
    return 0 if inner % _BLOCK[kind] else inner // _BLOCK[kind] * _BLOCK_BYTES[kind]


def linear(x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """x · wᵀ + bias for every weight, in one call; x float32 [..., inner], biases float32 [outer] or None.

    Raises:
        ValueError: other dtypes or lengths.
    """
    flat = x.reshape(-1, x.shape[-1])
    if flat.stride(-1) != 1:
        flat = flat.contiguous()
    if x.dtype != torch.float32 or any(w.inner != x.shape[-1] for w in weights):
        raise ValueError(f"rows {x.dtype} of {x.shape[-1]} do not go with weights of {[w.inner for w in weights]}")
    outs = [torch.empty(*x.shape[:-1], w.outer) for w in weights]
    calls = (PackedLinearCall * len(weights))()
    for call, weight, bias, out in zip(calls, weights, biases, outs, strict=True):
        describe(call, weight, bias)
        call.x, call.y = flat.data_ptr(), out.data_ptr()
        call.x_row, call.rows = flat.stride(0), len(flat)
    library().folio_packed_linear(calls, c_int32(len(weights)))
    return outs


def describe(call: PackedLinearCall, weight: PackedWeight, bias: Tensor | None) -> None:
    """What of a call does not change from one to the next.

    Raises:
        ValueError: a bias that is not contiguous float32 [outer].
    """
    if bias is not None and (bias.dtype != torch.float32 or bias.shape != (weight.outer,) or not bias.is_contiguous()):
        raise ValueError(f"a bias {bias.dtype} {list(bias.shape)} does not go with {weight.outer} rows")
    call.w, call.scale, call.bias = weight.data.data_ptr(), _address(weight.scale), _address(bias)
    call.inner, call.outer, call.kind = weight.inner, weight.outer, KINDS.index(weight.kind)
    call.threads, call.products = torch.get_num_threads(), PRODUCTS.index(weight.products)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else int(tensor.data_ptr())
