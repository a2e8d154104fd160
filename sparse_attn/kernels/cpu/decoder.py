"""The decoder layers of a model of Llama's, Phi's or Gemma's kind, all in one call or by halves.

`decoder.cpp` behind torch tensors.
"""

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
from sparse_attn.kernels.cpu.packed import PackedLinearCall, PackedWeight, describe
from sparse_attn.kernels.cpu.rows import ACTIVATIONS

_NORMS = ("input_norm", "attended_norm", "mlp_norm", "gated_norm", "q_norm", "k_norm")
_PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


class _Projection(ctypes.Structure):
    """`Projection` of decoder.cpp."""

    _fields_ = [(name, c_void_p) for name in ("w", "bias", "packed")]


class _Layer(ctypes.Structure):
    """`Layer` of decoder.cpp."""

    _fields_ = [
        *((name, c_void_p) for name in _NORMS),
        *((name, _Projection) for name in _PROJECTIONS),
        ("k_pages", c_void_p),
        ("v_pages", c_void_p),
        *((name.replace("norm", "eps"), c_float) for name in _NORMS),
        *((name, c_float) for name in ("scale", "softcap")),
        *((name, c_int32) for name in ("window", "rotary", "activation")),
    ]


class _Angles(ctypes.Structure):
    """`Angles` of decoder.cpp."""

    _fields_ = [("cos", c_void_p), ("sin", c_void_p), ("width", c_int64)]


class _Decoder(ctypes.Structure):
    """`Decoder` of decoder.cpp."""

    _fields_ = [
        *((name, c_void_p) for name in (
            "layers", "chosen", "attention", "x", "angles", "slots", "q", "k", "v", "attended",
        )),
        *((name, c_int64) for name in ("count", "rows", "hidden", "inner", "num_pages")),
        *((name, c_int32) for name in ("q_heads", "kv_heads", "dim", "threads")),
    ]  # fmt: skip


@dataclass(frozen=True)
class Norm:
    """An RMS norm: weight [dim] and epsilon."""

    weight: Tensor
    eps: float


@dataclass(frozen=True)
class Projection:
    """A linear layer: weight [outer, inner] in float32 or packed, bias [outer] or None."""

    weight: Tensor | PackedWeight
    bias: Tensor | None


@dataclass(frozen=True)
class DecoderLayer:
    """What one layer computes: x += o(attention(norm(x))), then x += down(activation(gate(norm(x))) · up(norm(x))).

    Attributes:
        projections: those named q, k, v, o, gate, up and down.
        input_norm, mlp_norm: of what attention and the MLP are given.
        attended_norm, gated_norm: of what they add to x; None for none.
        q_norm, k_norm: of each head's queries and keys before they are rotated; None for none.
        scale: factor of q·k; softcap: bound of it by a tanh, 0 for none.
        window: how many keys a row sees, itself included; 0 for all.
        rotary: number of the angles (`Angles`) that rotate q and k; None for none.
        activation: of the gate, one of `rows.ACTIVATIONS`.
    """

    input_norm: Norm
    mlp_norm: Norm
    projections: dict[str, Projection]
    scale: float
    attended_norm: Norm | None = None
    gated_norm: Norm | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    softcap: float = 0.0
    window: int = 0
    rotary: int | None = 0
    activation: str = "silu"


Angles = Sequence[tuple[Tensor, Tensor]]
"""cos and sin [T, R] of the rows' positions, for each rotation that layers name; R numbers of a head are rotated."""


class Decoder:
    """Layers that are run one after another over a batch; tensors are float32 and contiguous.

    Raises:
        ValueError: a weight of another dtype, or not contiguous, or packed ones beside others.
    """

    def __init__(self, layers: Sequence[DecoderLayer], num_heads: int, num_kv_heads: int, dim: int) -> None:
        self.layers = tuple(layers)
        self._calls: list[
            PackedLinearCall
        ] = []  # whose addresses the descriptions hold, as those of the layers' weights
        self._described = (_Layer * len(layers))(*(_described(layer, self._calls) for layer in layers))
        self._heads = (num_heads, num_kv_heads, dim)
        gate = layers[0].projections["gate"].weight
        self._inner = gate.outer if isinstance(gate, PackedWeight) else len(gate)
        self.packed = isinstance(gate, PackedWeight)
        self.rotary = any(layer.rotary is not None for layer in layers)

    def run(self, x: Tensor, angles: Angles, batch: AttnBatch, chosen: Sequence[int]) -> None:
        """Run the layers ``chosen`` over the rows x [T, hidden], in place; K and V go into the batch's pages.

        The batch is dense, of one head group of float32 or bfloat16, without earlier nodes.

        Raises:
            ValueError: x, cos or sin is not contiguous float32.
        """
        pool, group = batch.pool, batch.pool.groups[0]
        for layer, keys, values in zip(self._described, group.keys, group.values, strict=True):
            layer.k_pages, layer.v_pages = keys.data_ptr(), values.data_ptr()
        [tables] = batch.tables
        arguments = Arguments(batch.cu_seqlens, batch.context_lens, batch.tree_masks)
        arguments.heads(*self._heads)
        arguments.kinds(q=x.dtype, new=pool.dtype)
        arguments.pages(group.pages(0, tables.block_tables))
        slots = tables.slot_mapping.contiguous()
        call = self._call(chosen, x, angles)
        call.attention, call.slots = ctypes.addressof(arguments.call), slots.data_ptr()
        call.num_pages = pool.num_pages + 1
        library().folio_decoder(ctypes.byref(call))
        if group.stats is not None:
            for i in chosen:
                group.stats.update(i, group.keys[i], slots)

    def before(self, layer: int, x: Tensor, angles: Angles) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [T, Hq, D], keys and values [T, Hkv, D] of the rows x [T, hidden], rotated, by one layer.

        Raises:
            ValueError: as `run`.
        """
        num_heads, num_kv_heads, dim = self._heads
        q, k, v = (torch.empty(len(x), heads, dim) for heads in (num_heads, num_kv_heads, num_kv_heads))
        call = self._call([layer], x, angles)
        call.q, call.k, call.v = q.data_ptr(), k.data_ptr(), v.data_ptr()
        library().folio_layer_before(ctypes.byref(call))
        return q, k, v

    def after(self, layer: int, x: Tensor, attended: Tensor) -> None:
        """What the layer makes of its attention's result [T, Hq, D], and its MLP, added to x [T, hidden] in place."""
        call = self._call([layer], x, ())
        call.attended = _checked("attended", attended)
        library().folio_layer_after(ctypes.byref(call))

    def _call(self, chosen: Sequence[int], x: Tensor, angles: Angles) -> _Decoder:
        order = (c_int32 * len(chosen))(*chosen)
        rotations = (_Angles * len(angles))(
            *(_Angles(_checked("cos", cos), _checked("sin", sin), cos.shape[-1]) for cos, sin in angles)
        )
        num_heads, num_kv_heads, dim = self._heads
        call = _Decoder(
            layers=ctypes.addressof(self._described),
            chosen=ctypes.addressof(order),
            x=_checked("x", x),
            angles=ctypes.addressof(rotations),
            count=len(chosen),
            rows=x.shape[0],
            hidden=x.shape[1],
            inner=self._inner,
            q_heads=num_heads,
            kv_heads=num_kv_heads,
            dim=dim,
            threads=torch.get_num_threads(),
        )
        call.kept = order, rotations  # as long as the call
        return call


def _checked(name: str, given: Tensor) -> int:
    if given.dtype != torch.float32 or not given.is_contiguous():
        raise ValueError(f"{name} must be contiguous float32, not {given.dtype} with strides {given.stride()}")
    return given.data_ptr()


def _described(layer: DecoderLayer, calls: list[PackedLinearCall]) -> _Layer:
    described = _Layer(
        scale=layer.scale,
        softcap=layer.softcap,
        window=layer.window,
        rotary=-1 if layer.rotary is None else layer.rotary,
        activation=ACTIVATIONS.index(layer.activation),
    )
    for name in _NORMS:
        norm: Norm | None = getattr(layer, name)
        if norm is not None:
            setattr(described, name, _address(name, norm.weight))
            setattr(described, name.replace("norm", "eps"), norm.eps)
    if len({isinstance(one.weight, PackedWeight) for one in layer.projections.values()}) > 1:
        raise ValueError("some weights of a layer are packed and some are not")
    for name in _PROJECTIONS:
        projection = layer.projections[name]
        bias = None if projection.bias is None else _address(name, projection.bias)
        if isinstance(projection.weight, PackedWeight):
            call = PackedLinearCall()
            describe(call, projection.weight, projection.bias)
            calls.append(call)
            setattr(described, name, _Projection(None, bias, ctypes.addressof(call)))
        else:
            setattr(described, name, _Projection(_address(name, projection.weight), bias, None))
    return described


def _address(name: str, weight: Tensor) -> int:
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or not weight.is_contiguous():
        raise ValueError(f"the weights of {name} must be contiguous float32 on the CPU, not {weight.dtype}")
    return weight.data_ptr()
