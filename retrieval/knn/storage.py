"""Keys as they are kept, and as numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

STORAGE: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind) for name, kind in (("bfloat16", "<u2"), ("float16", "<f2"), ("float32", "<f4"))
}
"""how keys are kept: NumPy has no bfloat16, so its bits"""
_BLOCK = 1 << 16


def packed(keys: np.ndarray, key_type: str) -> np.ndarray:
    """Numbers as they are kept: [n, d] of ``STORAGE[key_type]``, rounded to nearest, ties to even."""
    if key_type != "bfloat16":
        return np.ascontiguousarray(keys, dtype=STORAGE[key_type])
    bits = np.ascontiguousarray(keys, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def unpacked(keys: np.ndarray, key_type: str) -> np.ndarray:
    """float32[n, d] of keys as they are kept."""
    if key_type != "bfloat16":
        return np.ascontiguousarray(keys, dtype=np.float32)
    return (keys.astype(np.uint32) << 16).view(np.float32)


def blocks(keys: np.ndarray, key_type: str, rows: int = _BLOCK) -> Iterator[np.ndarray]:
    """``rows`` keys at a time, as float32."""
    for start in range(0, len(keys), rows):
        yield unpacked(keys[start : start + rows], key_type)


def squared_norms(block: np.ndarray) -> np.ndarray:
    """float32[n] of float32[n, d]."""
    return np.einsum("nd,nd->n", block, block)
