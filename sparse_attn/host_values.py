"""Small integer tensors whose values the host knows: lengths and offsets that were made on the host.

Reading a tensor of a GPU waits for all the work before it. The runner makes `cu_seqlens` and `context_lens` from plain
integers, once a step; what is remembered here lets every layer cut by them without asking the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_NAME = "_folio_host_values"
_CHANGING: list[int] = []


def on_device(values: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of these values, remembered; to a GPU it is copied from pinned memory without waiting."""
    host = torch.tensor(list(values), dtype=dtype)
    return remember(to_device(host, device), values)


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """A host tensor on the device; to a GPU from pinned memory, without waiting. One that is there stays."""
    if host.device.type == device.type:
        return host
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def remember(tensor: Tensor, values: Sequence[int]) -> Tensor:
    """Note the values of an integer tensor, which must not change afterwards; returns it."""
    setattr(tensor, _NAME, list(values))
    return tensor


def changing(tensor: Tensor) -> Tensor:
    """Note that the values change while the tensor stays, as in the buffers of a captured graph; returns it."""
    setattr(tensor, _NAME, _CHANGING)
    return tensor


def host_list(tensor: Tensor) -> list[int]:
    """The values of a 1-D integer tensor: as remembered, else read from the device and remembered.

    Raises:
        RuntimeError: the values are `changing` on a device: what is made of them would be frozen into a graph.
    """
    values: list[int] | None = getattr(tensor, _NAME, None)
    if values is _CHANGING and tensor.device.type != "cpu":
        raise RuntimeError("the host reads a buffer of a captured graph, whose values change with each replay")
    if values is None or values is _CHANGING:
        values = tensor.tolist()
        if tensor.device.type != "cpu":  # on a CPU reading is free, and the tensor may be a buffer that changes
            remember(tensor, values)
    return values
