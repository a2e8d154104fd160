"""OS³, the scheduler of RaLMSpec (2401.14021, section 4): how many strides to guess before the next verification."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from retrieval.errors import InvalidRequest

WINDOWS = 5
"""windows over which the acceptance rate is estimated"""


@dataclass(frozen=True)
class SpeculationOptions:
    """How the speculative loop runs; nothing here changes the tokens.

    Attributes:
        stride: guesses in a window; None lets OS³ choose.
        longest: most guesses in a window that OS³ may choose.
        prefetch: chunks that each search puts into the cache. The sequential loop searches as deep: an approximate
            index may answer otherwise at another depth.
        overlap: go on writing while a window is verified; the paper goes on by one stride, here it is as many as fit.
        timeout_s: longest time of one search, or of encoding one query.
    """

    stride: int | None = None
    longest: int = 16
    prefetch: int = 16
    overlap: bool = False
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("stride", "longest", "prefetch", "timeout_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InvalidRequest(f"{name} must be above 0, not {value}; leave it out for the default")


def expected_rate(stride: int, a: float, b: float, gamma: float, overlap: bool) -> float:
    """Strides verified per unit of time in windows of ``stride`` guesses (section 4, with and without overlap).

    a: one guess, query and writing; b: one verification; gamma: the probability that a guess is right.
    """
    strides = sum(gamma**i for i in range(stride))  # (1 − γ^s) / (1 − γ), and its limit at γ = 1
    whole = stride * a + b
    if overlap:
        right = gamma**stride
        whole = right * ((stride - 1) * a + max(a, b)) + (1 - right) * whole
    return strides / whole if whole > 0 else float(strides)


def best_stride(a: float, b: float, gamma: float, overlap: bool, longest: int) -> int:
    """The window with the highest expected rate, the shortest of equals."""
    return max(range(1, longest + 1), key=lambda s: (expected_rate(s, a, b, gamma, overlap), -s))


def speculation_pays(stride: int, a: float, b: float, gamma: float, overlap: bool) -> bool:
    """Whether windows of ``stride`` guesses are faster than asking first.

    The objective of the paper leaves out that a wrong guess is written a second time; here it counts.
    """
    rate = expected_rate(stride, a, b, gamma, overlap)
    strides = sum(gamma**i for i in range(stride))
    return strides / (strides / rate + (1 - gamma**stride) * a) > 1 / (a + b) if a > 0 and rate > 0 else True


class StrideScheduler:
    """OS³: how many strides to guess before the next verification; 0 to search first, and only judge the guess.

    γ is ΣM / (ΣM + Σ1[M < s]) over the last windows, M the right guesses of a window. Where the published scheduler
    caps it at 0.6, this one counts half a wrong guess more than it has seen, which matters while it has seen few.
    """

    def __init__(self, options: SpeculationOptions) -> None:
        self._options = options
        self._windows: deque[tuple[int, int]] = deque(maxlen=WINDOWS)
        self.a = 0.0
        """seconds of one guess, lately"""
        self.b = 0.0
        """seconds of one verification, lately"""

    @property
    def gamma(self) -> float | None:
        """The acceptance rate seen; None before the first verified guess."""
        matched, missed = self._seen
        return matched / (matched + missed) if self._windows else None

    @property
    def expected(self) -> float:
        """The acceptance rate to reckon with."""
        matched, missed = self._seen
        return (matched + 1) / (matched + missed + 1.25)

    def next(self) -> int:
        """Guesses of the next window."""
        options = self._options
        if options.stride is not None:
            return options.stride
        stride = best_stride(self.a, self.b, self.expected, options.overlap, options.longest) if self._windows else 1
        return stride if speculation_pays(stride, self.a, self.b, self.expected, options.overlap) else 0

    def record(self, matched: int, guessed: int) -> None:
        """A window of ``guessed`` guesses, of which the first ``matched`` were right."""
        self._windows.append((matched, guessed))

    @property
    def _seen(self) -> tuple[int, int]:
        return sum(m for m, _ in self._windows), sum(m < s for m, s in self._windows)
