"""Memory that the system may hold in huge pages.

A forward streams over all of a sequence's keys and values. In pages of 4 KiB that is an address translation every 16th
row of 64 floats, which in a virtual machine costs two walks of tables; in pages of 2 MiB it is next to none.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

HUGE = 2 << 20  # bytes of a huge page on x86-64 and arm64


def zeros(size: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """`torch.zeros`; large tensors of the host in huge pages where the system has them, each taken when first used.

    Raises:
        RuntimeError: there is too little memory.
    """
    count = math.prod(size) * dtype.itemsize
    if torch.device(device).type != "cpu" or count < HUGE or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.zeros(*size, dtype=dtype, device=device)
    try:  # not from the allocator, whose memory may have been used before
        mapped = mmap.mmap(-1, count + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise RuntimeError(f"no memory for {count} bytes") from error
    whole = torch.frombuffer(mapped, dtype=torch.uint8)
    start = -whole.data_ptr() % HUGE
    _advise(whole.data_ptr() + start, count)
    return whole[start : start + count].view(dtype).view(*size)


def empty(size: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """`torch.empty`; large tensors of the host in huge pages where the system has them.

    Raises:
        RuntimeError: there is too little memory.
    """
    out = torch.empty(*size, dtype=dtype, device=device)
    if out.device.type == "cpu":
        _advise(out.data_ptr(), out.numel() * out.element_size())
    return out


def _advise(address: int, count: int) -> bool:
    """Ask for huge pages for the whole ones of `count` bytes; must come before they are first written to."""
    first, last = -(-address // HUGE) * HUGE, (address + count) // HUGE * HUGE
    if last <= first or not hasattr(mmap, "MADV_HUGEPAGE"):
        return False
    if ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_HUGEPAGE):
        _no_huge_pages()
        return False
    return True


@functools.cache
def _no_huge_pages() -> None:
    logger.info("the system gives no huge pages; attention over long contexts is slower for it")
