"""The back ends of attention: each has both kernels of `sparse_attn.dense`, with the same contract.

`select_kernels` names the one that serves a device and dtype; its `name` goes into the statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_attn import dense

Attention = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Kernels:
    """One back end; `paged_attention` and `ragged_attention` are those of `sparse_attn.dense`."""

    name: str
    paged_attention: Attention
    ragged_attention: Attention


TORCH = Kernels("torch", dense.paged_attention, dense.ragged_attention)


def select_kernels(device: torch.device, dtype: torch.dtype) -> Kernels:
    """The fastest back end for tensors of this dtype on this device."""
    return TORCH
