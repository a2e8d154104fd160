"""Linear layers by kind of weight and number of rows, beside torch's float32 and bfloat16, all timed in turn.

The shapes are those of a model's layers; each call takes another of several weights, so that they come from memory as
in a decode step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional
from typer import Option

from eval.bench.base import Figures, Row, ThreadedOptions, Threads, bench
from eval.bench.timer import time_in_turn
from eval.options import Separated
from sparse_attn.kernels.cpu import attention as cpu
from sparse_attn.kernels.cpu import features
from sparse_attn.kernels.cpu.packed import KINDS, PackedWeight, Products, linear, pack, pack_tensor, row_bytes

SHAPES = {"smollm2": ((1536, 576), (576, 1536), (576, 576)), "qwen2": ((4864, 896), (896, 4864), (896, 896))}
FEW = 64
"""Rows up to which weights are to come from memory: a decode step, a draft tree."""
_FROM_MEMORY = 64 << 20  # bytes of bfloat16 weights that are gone through


@dataclass(frozen=True, kw_only=True)
class Options(ThreadedOptions):
    """Time linear layers of every kind of weight against torch's products and the machine's limits."""

    threads: Threads = 2
    rounds: Annotated[int, Option(min=1, help="Rounds in which all take turns; the best counts.")] = 15
    rows: Annotated[tuple[int, ...], Separated(), Option(help="Numbers of rows, separated by commas.")] = (
        1,
        8,
        64,
        512,
        2048,
    )
    kinds: Annotated[tuple[str, ...], Separated(), Option(help="Kinds of weights.")] = (
        "BF16",
        "INT8",
        "Q4_1",
        "Q4_0",
        "Q8_0",
        "Q5_0",
    )
    shapes: Annotated[str, Option(help="Whose layers: smollm2 or qwen2.")] = "smollm2"
    products: Annotated[str, Option(help="What they are of where that is possible: bfloat16, float32 or int8.")] = (
        "bfloat16"
    )


@torch.inference_mode()
def run(options: Options) -> Figures:
    """A row for each shape and number of rows: GFLOP/s of each way, and for few rows the bytes of weights a second."""
    return {
        **options.told("threads", "rounds", "shapes", "products"),
        "features": features.family(),
        "linear": [
            measured(rows, outer, inner, options) for rows in options.rows for outer, inner in SHAPES[options.shapes]
        ],
    }


def measured(rows: int, outer: int, inner: int, options: Options) -> Row:
    """GFLOP/s of each kind, of torch in two dtypes and of our float32; GB/s of stored weights where rows are few."""
    copies = max(2, _FROM_MEMORY // (2 * outer * inner)) if rows <= FEW else 2
    x, weights = torch.randn(rows, inner), [torch.randn(outer, inner) for _ in range(min(copies, 24))]
    narrow_x, narrow = x.bfloat16(), [w.bfloat16() for w in weights]
    ways: dict[str, Callable[[], object]] = {
        "torch_float32": _over(weights, lambda w: functional.linear(x, w)),
        "torch_bfloat16": _over(narrow, lambda w: functional.linear(narrow_x, w)),
        "own_float32": _over(weights, lambda w: cpu.linear(x, w)),
    }
    products: Any = options.products
    packed = {
        kind: [_packed(kind, outer, inner, products) for _ in range(copies)]
        for kind in options.kinds
        if row_bytes(kind, inner)
    }
    for kind, these in packed.items():
        ways[kind] = _over(these, lambda w: linear(x, [w], [None]))
    times = {name: taken.best for name, taken in time_in_turn(ways, options.rounds, warm=3).items()}
    row: Row = {"rows": rows, "outer": outer, "inner": inner}
    row |= {name: 2e-9 * rows * outer * inner / taken for name, taken in times.items()}
    if rows <= FEW:
        row |= {f"{kind}_gb_per_s": these[0].num_bytes / times[kind] / 1e9 for kind, these in packed.items()}
    return row


def _over(weights: list[Tensor] | list[PackedWeight], multiply: Callable[..., object]) -> Callable[[], object]:
    """A call that takes the next of the weights each time."""
    turn = cycle(weights)
    return lambda: multiply(next(turn))


def _packed(kind: str, outer: int, inner: int, products: Products) -> PackedWeight:
    """A weight of this kind; the time of a product does not depend on its numbers."""
    if kind in ("BF16", "F16", "INT8"):
        return pack_tensor(torch.randn(outer, inner), kind, products=products)
    assert kind in KINDS
    stored = torch.randint(60, (outer, row_bytes(kind, inner)), dtype=torch.uint8)
    return pack(stored, kind, inner, products=products)


command = bench(Options, run, "linear_cpu")
