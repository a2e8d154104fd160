"""The back ends of attention: each has the kernels of `sparse_attn.kernels.dense`, with the same contract.

`select_kernels` names the one that serves a device and dtype; its `name` goes into the statistics.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparse_attn.kernels import dense
from sparse_attn.kernels.operands import PagedAttention, RaggedAttention
from sparse_attn.kernels.whole import WHOLE, Whole, best_whole, find_whole
from sparse_attn.rows import SequenceRows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kernels:
    """One back end: its functions are those of the same names in `sparse_attn.kernels.dense`.

    Attributes:
        name: what the statistics call it.
        skips: ``attention`` heeds `Rows.skip`.
        row_invariant: the bits of a row do not depend on the rows, sequences and chunks beside it.
        whole: what attends long dense runs of rows in place of ``attention``; None for nothing.
        vertical_slash: what weighs blocks in place of `sparse_attn.plan.score.vertical_slash`'s torch, given how many
            last rows stand for all; it answers None for keys that it does not read. None for nothing.
        scores: q·k of bfloat16 in float32, given queries [h, m, X], keys [Hkv, n, X] and the KV head of each of h. None
            where torch's product is as good.
        write_rows: what puts rows [T, H, …] into slots of pages, given (rows, pages, slots), in place of torch's
            indexing. None for nothing.
    """

    name: str
    attention: PagedAttention
    paged_attention: PagedAttention
    ragged_attention: RaggedAttention
    skips: bool = False
    row_invariant: bool = False
    whole: Whole | None = None
    vertical_slash: Callable[[SequenceRows, Sequence[int], int, int], tuple[Tensor, Tensor] | None] | None = None
    scores: Callable[[Tensor, Tensor, Sequence[int]], Tensor] | None = None
    write_rows: Callable[[Tensor, Tensor, Tensor], None] | None = None


BACKENDS = ("auto", "own", *WHOLE)
"""Names of back ends that may be asked for: ``own`` are this package's kernels alone."""

TORCH = Kernels("torch", dense.attention, dense.paged_attention, dense.ragged_attention, skips=True)


def select_kernels(device: torch.device, dtype: torch.dtype, backend: str = "auto") -> Kernels:
    """The kernels for tensors of this dtype on this device; ``backend`` says who attends long dense runs of rows.

    Raises:
        UnsupportedModelFeature: the back end that was asked for is not here.
    """
    own = _own_kernels(device, dtype)
    name = best_whole(device, dtype) if backend == "auto" else backend
    if name is None or name == "own":
        return own
    return _with_whole(own, name, device, dtype)


@functools.cache
def _with_whole(own: Kernels, name: str, device: torch.device, dtype: torch.dtype) -> Kernels:
    return replace(own, name=f"{own.name}+{name}", whole=find_whole(name, device, dtype), row_invariant=False)


def _own_kernels(device: torch.device, dtype: torch.dtype) -> Kernels:
    if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16):
        return _cpu_kernels(dtype)
    if device.type == "cuda":
        return _triton_kernels()
    return TORCH


@functools.cache
def _triton_kernels() -> Kernels:
    try:
        from sparse_attn.kernels.triton import attention as triton
    except ImportError as error:
        logger.warning("attention falls back to plain torch, which is many times slower: %s", error)
        return TORCH
    return Kernels("triton", triton.attention, triton.paged_attention, triton.ragged_attention)


@functools.cache
def _cpu_kernels(dtype: torch.dtype) -> Kernels:
    from sparse_attn.kernels.cpu import attention as cpu
    from sparse_attn.kernels.cpu import rows as cpu_rows
    from sparse_attn.kernels.cpu import score as cpu_score
    from sparse_attn.kernels.cpu.build import BuildError, library

    try:
        library()
    except BuildError as error:
        logger.warning("attention falls back to plain torch, which is several times slower: %s", error)
        return TORCH
    return Kernels(
        "cpu-c++",
        cpu.attention,
        cpu.paged_attention,
        cpu.ragged_attention,
        skips=True,
        row_invariant=True,
        vertical_slash=cpu_score.vertical_slash,
        scores=cpu_score.scores if dtype == torch.bfloat16 else None,
        write_rows=cpu_rows.write_rows,
    )
