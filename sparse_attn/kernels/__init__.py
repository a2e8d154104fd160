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

from sparse_attn.kernels import dense, flash3
from sparse_attn.kernels.operands import InPages, PagedAttention, RaggedAttention
from sparse_attn.kernels.whole import WHOLE, Whole, best_whole, find_whole
from sparse_attn.rows import SequenceRows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kernels:
    """One back end: its functions are those of the same names in `sparse_attn.kernels.dense`.

    Attributes:
        name: what the statistics call it.
        row_invariant: the bits of a row do not depend on the rows, sequences and chunks beside it.
        in_pages: what attends rows without an index that lie in pages already, in place of ``attention``; None for
            nothing.
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
    row_invariant: bool = False
    in_pages: InPages | None = None
    whole: Whole | None = None
    vertical_slash: Callable[[SequenceRows, Sequence[int], int, int], tuple[Tensor, Tensor] | None] | None = None
    scores: Callable[[Tensor, Tensor, Sequence[int]], Tensor] | None = None
    write_rows: Callable[[Tensor, Tensor, Tensor], None] | None = None


BACKENDS = ("auto", "own", flash3.NAME, *WHOLE)
"""Names of back ends that may be asked for: ``own`` are this package's kernels alone."""

INVARIANT = "batch-invariant"
"""This package's kernels, and of them those whose rows do not depend on one another where there are others too."""

TORCH = Kernels("torch", dense.attention, dense.paged_attention, dense.ragged_attention)


def select_kernels(device: torch.device, dtype: torch.dtype, backend: str = "auto") -> Kernels:
    """The kernels for tensors of this dtype on this device; ``backend`` says who attends long dense runs of rows.

    Raises:
        UnsupportedModelFeature: the back end that was asked for is not here.
    """
    own = _own_kernels(device, dtype)
    if backend == INVARIANT:
        return _made_invariant(own)
    name = best_whole(device, dtype) if backend == "auto" else backend
    if name is None or name == "own":
        return own
    if name == flash3.NAME:
        return _with_flash3(own, device, dtype)
    return _with_whole(own, name, device, dtype)


@functools.cache
def _with_whole(own: Kernels, name: str, device: torch.device, dtype: torch.dtype) -> Kernels:
    return replace(own, name=f"{own.name}+{name}", whole=find_whole(name, device, dtype), row_invariant=False)


@functools.cache
def _with_flash3(own: Kernels, device: torch.device, dtype: torch.dtype) -> Kernels:
    flash3.check(device, dtype)
    assert own.in_pages is not None
    return replace(own, name=f"{own.name}+{flash3.NAME}", in_pages=flash3.over(own.in_pages))


@functools.cache
def _made_invariant(own: Kernels) -> Kernels:
    if own.in_pages is None:
        return own
    from sparse_attn.kernels.triton import invariant, skipping

    in_pages = skipping.over(invariant.in_pages)
    return replace(own, name=f"{own.name}+invariant", in_pages=in_pages, row_invariant=True)


def _own_kernels(device: torch.device, dtype: torch.dtype) -> Kernels:
    if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16):
        return _cpu_kernels(dtype)
    if device.type == "cuda":
        return triton_kernels()
    return TORCH


@functools.cache
def triton_kernels() -> Kernels:
    """Those of a GPU; under Triton's interpreter they run anywhere."""
    try:
        from sparse_attn.kernels.triton import attention as triton
        from sparse_attn.kernels.triton import skipping
        from sparse_attn.kernels.triton.in_pages import in_pages
    except ImportError as error:
        logger.warning("attention falls back to plain torch, which is many times slower: %s", error)
        return TORCH
    own = (triton.attention, triton.paged_attention, triton.ragged_attention)
    return Kernels("triton", *own, in_pages=skipping.over(in_pages))


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
        row_invariant=True,
        vertical_slash=cpu_score.vertical_slash,
        scores=cpu_score.scores if dtype == torch.bfloat16 else None,
        write_rows=cpu_rows.write_rows,
    )
