"""In which numbers a model runs: what its weights are kept as, and what its products are of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from service.engine.loading.source import Source
from service.errors import ModelError
from sparse_attn.kernels import select_kernels
from sparse_attn.kernels.cpu import features
from sparse_attn.kernels.cpu.packed import Products

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

Weights = Literal["auto", "plain", "stored", "int8"]
Activations = Literal["auto", "int8"]


@dataclass(frozen=True)
class Precision:
    """The numbers of a model.

    Attributes:
        dtype: of products, by its name in ``DTYPES``. With weights that are not plain, all between products is float32.
        weights: ``plain`` in tensors of dtype, ``stored`` as the checkpoint has them (blocks of a GGUF file, or 16
            bits), ``int8`` with a scale a row.
        activations: ``int8`` where they are rounded to it, with a scale for every 32, as they enter a linear layer
            whose weights are integers; else ``auto``, in dtype.
    """

    dtype: str
    weights: Literal["plain", "stored", "int8"] = "plain"
    activations: Activations = "auto"

    @property
    def products(self) -> Products:
        """What the CPU kernels' products shall be of."""
        if self.activations == "int8":
            return "int8"
        return "bfloat16" if self.dtype == "bfloat16" else "float32"


def choose(
    source: Source,
    dtype: str,
    weights: Weights,
    device: str,
    shared: bool = False,
    activations: Activations = "auto",
) -> Precision:
    """What ``auto`` stands for, for a checkpoint on a device; ``shared``: by several ranks.

    On a CPU a checkpoint that is not in float32 keeps its weights as they are stored, and products are of bfloat16
    where the processor has instructions for them. An explicit float32 of auto weights is plain, for comparisons.

    Raises:
        ModelError: there is no such dtype, or these weights or activations are not for this device and dtype.
    """
    chosen = _chosen(source, dtype, weights, device, shared)
    if activations == "auto":
        return chosen
    if chosen.weights == "int8" or (chosen.weights == "stored" and source.stored == "blocks"):
        return replace(chosen, activations=activations)
    raise ModelError(
        f"Activations {activations} are for weights of integers on a CPU: the blocks of a GGUF file, or int8.",
        hint="Give --weights int8, or --activations auto.",
        param="activations",
    )


def _chosen(source: Source, dtype: str, weights: Weights, device: str, shared: bool) -> Precision:
    if dtype not in (*DTYPES, "auto"):
        raise ModelError(f"Unknown dtype {dtype!r}.", hint=f"Choose one of auto, {', '.join(DTYPES)}.", param="dtype")
    packs = device == "cpu" and not shared and dtype in ("auto", "float32", "bfloat16") and can_pack()
    if weights in ("stored", "int8") and not packs:
        raise ModelError(
            f"Weights {weights} are for one process on a CPU with a C++ compiler, in float32 or bfloat16.",
            hint="Give --weights auto.",
            param="weights",
        )
    if dtype == "auto":
        if device != "cpu":
            return Precision("bfloat16")
        narrow = packs and weights != "plain" and (weights == "int8" or source.stored != "float32")
        dtype = "bfloat16" if narrow and features.multiplies_bfloat16() else "float32"
        return Precision(dtype, ("stored" if weights == "auto" else weights) if narrow else "plain")  # type: ignore[arg-type]
    if weights == "auto":
        weights = "stored" if packs and dtype == "bfloat16" else "plain"
    if weights == "stored" and dtype == source.stored == "float32":
        weights = "plain"
    return Precision(dtype, weights)


def weight_bytes(source: Source, precision: Precision) -> int | None:
    """What the weights take in memory, within a few percent; None where the checkpoint does not say their number."""
    count = source.num_parameters
    if count is None:
        return None
    if precision.weights == "plain":
        return count * DTYPES[precision.dtype].itemsize
    if precision.weights == "stored" and source.stored == "blocks":
        return source.num_bytes
    return count * (1 if precision.weights == "int8" else 2)


def can_pack() -> bool:
    """Whether the C++ kernels are there."""
    return select_kernels(torch.device("cpu"), torch.float32, "own").row_invariant
