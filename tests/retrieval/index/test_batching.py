"""Calls that come together, or come back together, are run together; a call alone is run at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

from retrieval.index import batching
from retrieval.index.batching import Batcher


class Doubling:
    """Doubles numbers, and remembers the batches. The first batch waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.go = threading.Event()

    def __call__(self, numbers: Sequence[int]) -> list[int | Exception]:
        self.batches.append(len(numbers))
        self.go.wait(10)
        return [ValueError("odd") if number % 2 else 2 * number for number in numbers]


def after_a_batch_of(numbers: list[int]) -> tuple[Doubling, Batcher[int, int]]:
    """A batcher that has answered one call alone, and then these together."""
    run = Doubling()
    batcher: Batcher[int, int] = Batcher(run)
    batcher.submit(0)
    while not run.batches:
        time.sleep(0.001)
    together = [batcher.submit(number) for number in numbers]
    run.go.set()
    assert [future.result(10) for future in together] == [2 * number for number in numbers]
    return run, batcher


def test_who_calls_during_a_batch_is_in_the_next() -> None:
    run = Doubling()
    batcher = Batcher(run)
    first = batcher.submit(2)
    while not run.batches:
        time.sleep(0.001)
    others = [batcher.submit(number) for number in (4, 5, 6)]
    gone = batcher.submit(8)
    assert gone.cancel()
    run.go.set()
    assert (first.result(10), others[0].result(10), others[2].result(10)) == (4, 8, 12)
    with pytest.raises(ValueError, match="odd"):
        others[1].result(10)
    assert run.batches == [1, 3]


def test_who_was_answered_together_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "GAP_S", 5.0)
    monkeypatch.setattr(batching, "GATHER_S", 20.0)
    run, batcher = after_a_batch_of([2, 4, 6])
    again = []
    for number in (2, 4, 6):  # one comes back, then another
        again.append(batcher.submit(number))
        time.sleep(0.05)
    assert [future.result(10) for future in again] == [4, 8, 12]
    assert run.batches == [1, 3, 3]


def test_nobody_is_waited_for_in_vain_for_long_or_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "GAP_S", 0.3)
    _, batcher = after_a_batch_of([2, 4])
    monkeypatch.setattr(batching, "GATHER_S", 0.3)
    began = time.monotonic()
    assert batcher(2) == 4  # the other has left
    assert time.monotonic() - began >= 0.3
    monkeypatch.setattr(batching, "GAP_S", 100.0)
    monkeypatch.setattr(batching, "GATHER_S", 100.0)
    assert batcher.submit(2).result(10) == 4  # a caller alone, after one alone
