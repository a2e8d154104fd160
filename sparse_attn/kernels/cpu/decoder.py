"""All decoder layers of a model of Llama's kind in one call: `decoder.cpp` behind torch tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_attn.batch import AttnBatch
from sparse_attn.kernels.cpu.attention import Arguments
from sparse_attn.kernels.cpu.build import library

_NORMS = ("input_norm", "post_norm", "q_norm", "k_norm")
_PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


class _Layer(ctypes.Structure):
    """`Layer` of decoder.cpp."""

    _fields_ = [
        *((name, c_void_p) for name in (*_NORMS, *_PROJECTIONS, *(f"{name}_bias" for name in _PROJECTIONS))),
        ("k_pages", c_void_p),
        ("v_pages", c_void_p),
        *((name, c_float) for name in ("input_eps", "post_eps", "q_eps", "k_eps", "scale")),
        ("window", c_int32),
        ("rotary", c_int32),
    ]


class _Decoder(ctypes.Structure):
    """`Decoder` of decoder.cpp."""

    _fields_ = [
        *((name, c_void_p) for name in ("layers", "chosen", "attention", "x", "cos", "sin", "slots")),
        *((name, c_int64) for name in ("count", "rows", "hidden", "inner", "num_pages")),
    ]


@dataclass(frozen=True)
class Norm:
    """An RMS norm: weight [dim] and epsilon."""

    weight: Tensor
    eps: float


@dataclass(frozen=True)
class Projection:
    """A linear layer: weight [outer, inner], bias [outer] or None."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class DecoderLayer:
    """What one layer computes: x += o(attention(norm(x))), then x += down(silu(gate(norm(x))) · up(norm(x))).

    Attributes:
        projections: those named q, k, v, o, gate, up and down.
        q_norm, k_norm: norms of each head's queries and keys before they are rotated; None for none.
        scale: factor of q·k.
        window: how many keys a row sees, itself included; 0 for all.
        rotary: whether positions rotate q and k.
    """

    input_norm: Norm
    post_norm: Norm
    projections: dict[str, Projection]
    q_norm: Norm | None
    k_norm: Norm | None
    scale: float
    window: int
    rotary: bool


class Decoder:
    """Layers that are run one after another over a batch; all tensors float32, each weight contiguous.

    Raises:
        ValueError: a weight of another dtype, or not contiguous.
    """

    def __init__(self, layers: Sequence[DecoderLayer], num_heads: int, num_kv_heads: int, dim: int) -> None:
        self._layers = (_Layer * len(layers))(*map(_described, layers))
        self._kept = list(layers)  # whose addresses the descriptions hold
        self._heads = (num_heads, num_kv_heads, dim)
        self._inner = len(layers[0].projections["gate"].weight)
        self.rotary = any(layer.rotary for layer in layers)

    def run(self, x: Tensor, cos: Tensor | None, sin: Tensor | None, batch: AttnBatch, chosen: Sequence[int]) -> None:
        """Run the layers ``chosen`` over the rows x [T, hidden], in place; K and V go into the batch's pages.

        The batch is dense, of one head group of float32, without earlier nodes. cos and sin [T, D] are of its
        positions, None where no layer rotates.

        Raises:
            ValueError: x, cos or sin is not contiguous float32.
        """
        for name, given in (("x", x), ("cos", cos), ("sin", sin)):
            if given is not None and (given.dtype != torch.float32 or not given.is_contiguous()):
                raise ValueError(f"{name} must be contiguous float32, not {given.dtype} with strides {given.stride()}")
        pool, group = batch.pool, batch.pool.groups[0]
        for layer, keys, values in zip(self._layers, group.keys, group.values, strict=True):
            layer.k_pages, layer.v_pages = keys.data_ptr(), values.data_ptr()
        [tables] = batch.tables
        arguments = Arguments(batch.cu_seqlens, batch.context_lens, batch.tree_masks)
        arguments.heads(*self._heads)
        arguments.pages(group.pages(0, tables.block_tables))
        slots = tables.slot_mapping.contiguous()
        order = (c_int32 * len(chosen))(*chosen)
        call = _Decoder(
            layers=ctypes.addressof(self._layers),
            chosen=ctypes.addressof(order),
            attention=ctypes.addressof(arguments.call),
            x=x.data_ptr(),
            cos=None if cos is None else cos.data_ptr(),
            sin=None if sin is None else sin.data_ptr(),
            slots=slots.data_ptr(),
            count=len(chosen),
            rows=x.shape[0],
            hidden=x.shape[1],
            inner=self._inner,
            num_pages=pool.num_pages + 1,
        )
        library().folio_decoder(ctypes.byref(call))
        if group.stats is not None:
            for i in chosen:
                group.stats.update(i, group.keys[i], slots)


def _described(layer: DecoderLayer) -> _Layer:
    described = _Layer(scale=layer.scale, window=layer.window, rotary=layer.rotary)
    for name, norm in zip(_NORMS, (layer.input_norm, layer.post_norm, layer.q_norm, layer.k_norm), strict=True):
        if norm is not None:
            setattr(described, name, _address(name, norm.weight))
            setattr(described, name.replace("norm", "eps"), norm.eps)
    for name in _PROJECTIONS:
        projection = layer.projections[name]
        setattr(described, name, _address(name, projection.weight))
        if projection.bias is not None:
            setattr(described, f"{name}_bias", _address(name, projection.bias))
    return described


def _address(name: str, weight: Tensor) -> int:
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or not weight.is_contiguous():
        raise ValueError(f"the weights of {name} must be contiguous float32 on the CPU, not {weight.dtype}")
    return weight.data_ptr()
