"""The back ends of attention: each has the kernels of `sparse_attn.dense`, with the same contract.

`select_kernels` names the one that serves a device and dtype; its `name` goes into the statistics.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass

import torch

from sparse_attn import dense
from sparse_attn.dense import Attention

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kernels:
    """One back end: its functions are those of the same names in `sparse_attn.dense`.

    Attributes:
        name: what the statistics call it.
        row_invariant: the bits of a row do not depend on the rows, sequences and chunks beside it.
    """

    name: str
    attention: Attention
    paged_attention: Attention
    ragged_attention: Attention
    row_invariant: bool = False


TORCH = Kernels("torch", dense.attention, dense.paged_attention, dense.ragged_attention)


def select_kernels(device: torch.device, dtype: torch.dtype) -> Kernels:
    """The fastest back end for tensors of this dtype on this device."""
    if device.type == "cpu" and dtype == torch.float32:
        return _cpu_kernels()
    if device.type == "cuda":
        return _triton_kernels()
    return TORCH


@functools.cache
def _triton_kernels() -> Kernels:
    try:
        from sparse_attn.kernels import triton_attention as triton
    except ImportError as error:
        logger.warning("attention falls back to plain torch, which is many times slower: %s", error)
        return TORCH
    return Kernels("triton", triton.attention, triton.paged_attention, triton.ragged_attention)


@functools.cache
def _cpu_kernels() -> Kernels:
    from sparse_attn.kernels import cpu
    from sparse_attn.kernels.cpu_build import BuildError, library

    try:
        library()
    except BuildError as error:
        logger.warning("attention falls back to plain torch, which is several times slower: %s", error)
        return TORCH
    return Kernels("cpu-c++", cpu.attention, cpu.paged_attention, cpu.ragged_attention, row_invariant=True)
