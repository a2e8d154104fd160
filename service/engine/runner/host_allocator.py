"""Keeps what a CPU forward frees, for the next one.

The activations of a prefill chunk are tens of megabytes each, which glibc returns to the system when they are freed:
the next layer then pays a page fault for every 4 KiB that it writes. With two threads that was a quarter of the
prefill of a 27 M-parameter Llama.
"""

from __future__ import annotations

import ctypes
import functools

import structlog

logger = structlog.get_logger(__name__)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
KEPT_BYTES = 1 << 30


@functools.cache
def keep_freed_memory(kept_bytes: int = KEPT_BYTES) -> bool:
    """Let the process keep up to so many freed bytes, and serve large allocations from them, in every thread.

    Idempotent. Returns False, and logs it, where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        logger.info("the C library's allocator cannot be told to keep freed memory; prefill is slower for it")
        return False
    # threads share the main arena: the others' heaps are too small for a chunk's activations
    settings = ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, kept_bytes), (M_TRIM_THRESHOLD, kept_bytes))
    accepted = [mallopt(parameter, value) for parameter, value in settings]
    return all(accepted)
