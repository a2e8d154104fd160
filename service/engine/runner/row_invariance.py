"""Linear layers whose rows do not depend on how many rows run together.

A matrix library picks its order of summation by the shape of the product: with MKL the first row of 33 differs in its
last bits from the same row alone, and padding does not cure it (with an inner size of 1,408, rows padded to a multiple
of 64 still differ beyond 192 of them). Then a token verified within a draft tree, or decoded within a batch, can be
chosen differently from the same token decoded alone. The CPU attention kernels are free of this by construction;
`make_row_invariant` makes a float32 model's linear layers so too, by `sparse_attn.kernels.cpu.attention.linear`.

What is left to torch is independent by rows too (norms, rotary embedding, additions), activations with a reservation:
torch computes the tail of each thread's share with scalar code, whose exp rounds otherwise. With one or two threads and
a width that is a multiple of 64, as real models have, there is no tail.

Measured on two AVX-512 cores, weights of 2 MB from memory: 1.0 to 1.1 of MKL's time up to 33 rows, 1.2 at 64, 1.5 at
256 and beyond. Hence `max_rows`: of larger products the rows of prompts go to the library as before. Those of tokens
and drafts that are decoded beside them, the first of a step (`leading`), do not.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import torch
from torch import Tensor, nn
from torch.nn import functional

from sparse_attn.kernels import select_kernels
from sparse_attn.kernels.cpu import attention as cpu

logger = structlog.get_logger(__name__)

MAX_ROWS = 256

_step = threading.local()


@contextmanager
def leading(rows: int) -> Iterator[None]:
    """In this thread and block, the first so many rows of every product are independent of the others, however many."""
    _step.rows = rows
    try:
        yield
    finally:
        _step.rows = 0


def make_row_invariant(model: nn.Module, max_rows: int | None = MAX_ROWS) -> int:
    """Give every float32 linear layer on the CPU a product whose rows are independent of one another.

    The layers keep their class, parameters and names; only the `forward` of each instance changes. Calling it again
    changes nothing but `max_rows`.

    Args:
        model: the model, in place.
        max_rows: most rows that are computed so, beside those that are `leading`; None for all.

    Returns:
        How many layers changed: 0 where the CPU kernels cannot be built, which is logged.
    """
    if not select_kernels(torch.device("cpu"), torch.float32).row_invariant:
        logger.warning("linear layers keep the library's product: rows may differ in their last bits by batch size")
        return 0
    layers = [module for module in model.modules() if _is_plain(module)]
    for layer in layers:
        layer.forward = functools.partial(_forward, layer, max_rows)  # type: ignore[method-assign, arg-type]
    return len(layers)


def _is_plain(module: nn.Module) -> bool:
    """A linear layer that nothing else (an adapter, a quantiser) has taken over."""
    if type(module) is not nn.Linear or hasattr(module.weight, "to_local"):  # the latter is a share of several ranks
        return False
    return module.weight.dtype == torch.float32 and module.weight.device.type == "cpu"


def _forward(layer: nn.Linear, max_rows: int | None, x: Tensor) -> Tensor:
    rows = x.numel() // x.shape[-1]
    if x.requires_grad or x.dtype != torch.float32:
        return functional.linear(x, layer.weight, layer.bias)
    lead = rows if max_rows is None or rows <= max_rows else min(rows, getattr(_step, "rows", 0))
    if lead == rows:
        return cpu.linear(x, layer.weight, layer.bias)
    if not lead:
        return functional.linear(x, layer.weight, layer.bias)
    first, rest = x.reshape(rows, -1).split([lead, rows - lead])
    parts = [cpu.linear(first, layer.weight, layer.bias), functional.linear(rest, layer.weight, layer.bias)]
    return torch.cat(parts).view(*x.shape[:-1], -1)
