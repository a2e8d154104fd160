"""What a forward does row by row on a CPU: `rows.cpp` behind torch tensors."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from sparse_attn.kernels.cpu.build import library

ACTIVATIONS = ("silu", "gelu_tanh")
"""Of a gate: SiLU, and GELU as its approximation by a tanh (arXiv 1606.08415, section 2)."""


class _Norm(ctypes.Structure):
    """`Norm` of calls.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "weight", "y")),
        *((name, c_int64) for name in ("x_row", "rows", "dim")),
        ("eps", c_float),
        ("threads", c_int32),
    ]


class _Write(ctypes.Structure):
    """`Write` of calls.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("source", "pages", "slots")),
        *((name, c_int64) for name in (
            "source_row", "source_head", "page_stride", "num_pages", "rows", "heads", "page_size", "row_bytes",
        )),
    ]  # fmt: skip


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension, in float32 (arXiv 1910.07467); as x, contiguous.

    Raises:
        ValueError: another dtype, or a weight that is not as long as a row.
    """
    dim = x.shape[-1]
    if x.dtype != torch.float32 or weight.dtype != torch.float32 or weight.shape != (dim,):
        raise ValueError(f"rows {x.dtype} of {dim} do not go with a weight {weight.dtype} {list(weight.shape)}")
    flat, weight = x.reshape(-1, dim), weight.contiguous()
    if flat.stride(-1) != 1:
        flat = flat.contiguous()
    out = torch.empty(x.shape)
    call = _Norm(
        flat.data_ptr(), weight.data_ptr(), out.data_ptr(), flat.stride(0), flat.shape[0], dim, eps,
        torch.get_num_threads(),
    )  # fmt: skip
    library().folio_rms_norm(ctypes.byref(call))
    return out


def write_rows(source: Tensor, pages: Tensor, slots: Tensor) -> None:
    """Put rows into slots of pages: source [T, H, …], pages [P, H, page_size, …] of its dtype, slots int64 [T].

    Slot s is row s % page_size of page s // page_size; -1 is the last of all. A page must be contiguous; the pages may
    lie apart.

    Raises:
        ValueError: the shapes or dtypes do not go together, or a page is not contiguous.
    """
    rows, heads = source.shape[:2]
    num_pages, _, page_size = pages.shape[:3]
    if (
        source.dtype != pages.dtype
        or (heads, *source.shape[2:]) != (pages.shape[1], *pages.shape[3:])
        or slots.shape != (rows,)
        or slots.dtype != torch.int64
        or not pages[:1].is_contiguous()
    ):
        raise ValueError(
            f"rows {source.dtype} {list(source.shape)} do not go into {slots.dtype} slots {list(slots.shape)} of "
            f"contiguous pages {pages.dtype} {list(pages.shape)}"
        )
    if source.dim() > 2 and source.stride(-1) != 1:
        source = source.contiguous()
    slots = slots.contiguous()
    size = source.element_size()
    call = _Write(
        source.data_ptr(), pages.data_ptr(), slots.data_ptr(), source.stride(0) * size, source.stride(1) * size,
        pages.stride(0) * size, num_pages, rows, heads, page_size, source[0, 0].numel() * size if rows else 0,
    )  # fmt: skip
    library().folio_write(ctypes.byref(call))


def gate_mul(gate: Tensor, up: Tensor, activation: str = "silu") -> Tensor:
    """activation(gate) · up, as in SwiGLU and GEGLU (arXiv 2002.05202), in float32; overwrites ``up`` and returns it.

    Args:
        activation: one of ``ACTIVATIONS``.

    Raises:
        ValueError: other dtypes, unequal shapes, or rows that are not contiguous.
    """
    if gate.dtype != torch.float32 or up.dtype != torch.float32 or gate.shape != up.shape:
        raise ValueError(f"a gate {gate.dtype} {list(gate.shape)} does not go with {up.dtype} {list(up.shape)}")
    if not (gate.is_contiguous() and up.is_contiguous()):
        raise ValueError("a gate and what it multiplies must be contiguous")
    number, pointers = ACTIVATIONS.index(activation), (c_void_p(gate.data_ptr()), c_void_p(up.data_ptr()))
    library().folio_gate(c_int32(number), *pointers, c_int64(up.numel()), c_int32(torch.get_num_threads()))
    return up
