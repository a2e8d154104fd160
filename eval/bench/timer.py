"""What this machine can do in the moment of a measurement: read bandwidth and matrix rate, and times taken in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

MATMUL = 512
READ_FLOATS = 2 << 20


def best_times(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each function, the best of `rounds`, all of them called in turn within each round.

    On a shared machine the best is what the code can do, and taking turns lets all meet the same quiet moments.
    """
    best = dict.fromkeys(functions, float("inf"))
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


class Marks:
    """Two functions to time beside a kernel, and the limits that follow from their times."""

    def __init__(self) -> None:
        self._parts = torch.randn(24, READ_FLOATS)  # far beyond the second-level cache
        self._next = 0
        self._a, self._b = torch.randn(MATMUL, MATMUL), torch.randn(MATMUL, MATMUL)

    def functions(self) -> dict[str, Callable[[], object]]:
        return {"read": self._read, "matmul": self._matmul}

    def _read(self) -> object:
        self._next = (self._next + 1) % len(self._parts)
        return self._parts[self._next].sum()

    def _matmul(self) -> object:
        return self._a @ self._b

    @staticmethod
    def bytes_per_s(times: Mapping[str, float]) -> float:
        return READ_FLOATS * 4 / times["read"]

    @staticmethod
    def flops_per_s(times: Mapping[str, float]) -> float:
        return 2 * MATMUL**3 / times["matmul"]
