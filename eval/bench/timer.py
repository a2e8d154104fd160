"""Times of what is compared, taken in turn, and what the machine can do in the moment of the measurement.

A machine's pace changes while it works (clocks, neighbours): in turn, all that is compared meets the same moments.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any, TypeVar

import torch

T = TypeVar("T")
Work = Callable[[], Any]


class Times(list[float]):
    """Seconds of one way of working, round by round."""

    @property
    def best(self) -> float:
        """What the code can do: on a shared machine the others are longer by what else ran."""
        return min(self)

    @property
    def median(self) -> float:
        return median(self)

    @property
    def spread(self) -> float:
        """The longest over the shortest."""
        return max(self) / min(self)


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What one call gave, and its seconds; the work of a GPU in use is waited for."""
    began = time.perf_counter()
    found = work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return found, time.perf_counter() - began


def seconds(work: Work) -> float:
    """Of one call."""
    return timed(work)[1]


def in_turn(ways: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each way gave in each round; in a round all are called one after the other."""
    found: dict[str, list[T]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(way())
    return found


def time_in_turn(ways: Mapping[str, Work], rounds: int, warm: int = 1) -> dict[str, Times]:
    """Seconds of each way in each round, after so many rounds that are not counted."""
    in_turn(ways, warm)

    found = in_turn({name: partial(seconds, work) for name, work in ways.items()}, rounds)
    return {name: Times(taken) for name, taken in found.items()}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios of the rounds that both took part in."""
    return median(a / b for a, b in zip(ours, theirs, strict=False))


@dataclass
class Calls:
    """The calls of a function while it was watched.

    Attributes:
        began: when the watching began, by `time.perf_counter`.
        at: when each call began, in seconds since then.
        seconds: what it took.
    """

    began: float
    at: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def since(self, moment: float) -> list[float]:
        """Seconds of the calls that began after so many seconds."""
        return [taken for at, taken in zip(self.at, self.seconds, strict=True) if at >= moment]


@contextmanager
def watch(owner: Any, name: str) -> Iterator[Calls]:
    """Watch a function of a module or a method of a class."""
    whole, found = getattr(owner, name), Calls(time.perf_counter())

    def watched(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return whole(*arguments, **options)
        finally:
            found.at.append(began - found.began)
            found.seconds.append(time.perf_counter() - began)

    setattr(owner, name, watched)
    try:
        yield found
    finally:
        setattr(owner, name, whole)


def ceilings(rounds: int = 5, side: int = 2048) -> dict[str, float]:
    """What memory gives and what products of square matrices reach in either dtype, on this CPU: best of all rounds."""
    marks = Marks()
    a, b = torch.randn(2, side, side)
    narrow_a, narrow_b = a.bfloat16(), b.bfloat16()
    ways = {"read": marks.ways()["read"], "float32": lambda: a @ b, "bfloat16": lambda: narrow_a @ narrow_b}
    times = {name: taken.best for name, taken in time_in_turn(ways, rounds).items()}
    return {
        "read_gb_per_s": marks.bytes_per_s(times["read"]) / 1e9,
        **{f"{name}_gflops": 2e-9 * side**3 / times[name] for name in ("float32", "bfloat16")},
    }


class Marks:
    """A read of memory and a product of matrices to time beside other work, and the rates that follow.

    Args:
        parts: vectors that are read one after the other, so that none is found in a cache.
        floats: of each of them.
        side: of the square matrices.
        dtype: of the matrices.
    """

    def __init__(
        self,
        parts: int = 24,
        floats: int = 2 << 20,
        side: int = 512,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._parts = torch.randn(parts, floats, device=device)
        self._next, self._side = 0, side
        self._a, self._b = torch.randn(2, side, side, device=device).to(dtype)

    def ways(self) -> dict[str, Work]:
        return {"read": self._read, "matmul": self._matmul}

    def bytes_per_s(self, read_s: float) -> float:
        return 4 * self._parts.shape[1] / read_s

    def flops_per_s(self, matmul_s: float) -> float:
        return 2 * self._side**3 / matmul_s

    def _read(self) -> object:
        self._next = (self._next + 1) % len(self._parts)
        return self._parts[self._next].sum()

    def _matmul(self) -> object:
        return self._a @ self._b
