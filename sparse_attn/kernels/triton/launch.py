"""How the Triton kernels are launched: tuned on a GPU, with one fixed configuration under the interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from sparse_attn.kernels.operands import Rows
from sparse_attn.kernels.triton.cache import use_movable_cache

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
TUNING = os.environ.get("FOLIO_KERNEL_TUNING", "1") == "1"
"""Off, kernels take the first configuration that fits: for tests, where compiling takes longer than running."""
use_movable_cache()
LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453


class _Fixed:
    """A kernel with the first of its configurations that fits: nothing is timed."""

    def __init__(self, kernel: Any, configs: Sequence[triton.Config]) -> None:
        self.kernel, self.configs = kernel, configs

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        launch = self.kernel[grid]

        def run(*args: Any, **constants: Any) -> None:
            config = fitting(self.configs, {}, **constants)[0]
            launch(*args, **constants, **(config.kwargs if INTERPRETED else config.all_kwargs()))

        return run


def tuned(configs: Sequence[triton.Config], key: Sequence[str]) -> Callable[[Any], Any]:
    """Decorate a ``triton.jit`` kernel: choose among configs by timing, once for each value of ``key``.

    Timing happens at the first launch with a new key, so run each shape once before capturing a CUDA graph. What was
    found is kept on disk in Triton's cache, which may be carried to a machine of the same kind.
    """

    def wrap(kernel: Any) -> Any:
        if INTERPRETED or not TUNING:
            return _Fixed(kernel, list(configs))
        prune = {"early_config_prune": fitting}
        kept = {"prune_configs_by": prune, "cache_results": True}  # beside the binaries, so that two starts agree
        return triton.autotune(configs=list(configs), key=list(key), **kept)(kernel)

    return wrap


def fitting(configs: Sequence[triton.Config], arguments: dict[str, Any], **constants: Any) -> list[triton.Config]:
    """The configurations worth timing: a tile of 128 rows spills with four warps, one of 16 starves eight."""
    rows = constants.get("BLOCK_M", 64)
    fit = [c for c in configs if not (rows >= 128 and c.num_warps < 8) and not (rows <= 32 and c.num_warps > 4)]
    return fit or list(configs)


def query_tiles(rows: Rows, block_q: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut the rows of a ragged batch into tiles without waiting for the device.

    For ``min(T, T // block_q + S)`` tiles (the last ones may be empty): first row, number of rows and sequence, int32
    each. All layers of a forward cut the same rows, so they are made once.
    """
    at = (query_tiles, block_q)
    if at not in rows.kept:
        rows.kept[at] = _cut(rows.cu_seqlens, len(rows.q), block_q)
    tiles: tuple[Tensor, Tensor, Tensor] = rows.kept[at]
    return tiles


def _cut(cu_seqlens: Tensor, num_rows: int, block_q: int) -> tuple[Tensor, Tensor, Tensor]:
    lengths = cu_seqlens[1:] - cu_seqlens[:-1]
    ends = torch.cumsum((lengths + block_q - 1) // block_q, 0, dtype=torch.int32)
    count = min(num_rows, num_rows // block_q + len(lengths))  # a tile that is not empty has a row
    tiles = torch.arange(count, dtype=torch.int32, device=cu_seqlens.device)
    seq = torch.searchsorted(ends, tiles, right=True).clamp(max=len(lengths) - 1)
    within = tiles - (ends - (lengths + block_q - 1) // block_q)[seq]
    first = cu_seqlens[seq] + within * block_q
    rows = (lengths[seq] - within * block_q).clamp(0, block_q)
    return first.int(), rows.int(), seq.int()
