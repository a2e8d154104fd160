"""OS³, the scheduler of RaLMSpec (2401.14021, section 4): how many strides to guess before the next verification."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

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


def best_stride(a: float, b: float, gamma: float, overlap: bool, longest: int, each: float = 0.0) -> int:
    """The window with the highest expected rate, the shortest of equals. each: what b grows by with every guess."""
    return max(range(1, longest + 1), key=lambda s: (expected_rate(s, a, b + each * s, gamma, overlap), -s))


def speculation_pays(stride: int, a: float, b: float, gamma: float, overlap: bool) -> bool:
    """Whether windows of ``stride`` guesses are faster than asking first.

    The objective of the paper leaves out that a wrong guess is written a second time; here it counts.
    """
    rate = expected_rate(stride, a, b, gamma, overlap)
    strides = sum(gamma**i for i in range(stride))
    return strides / (strides / rate + (1 - gamma**stride) * a) > 1 / (a + b) if a > 0 and rate > 0 else True


class Experience:
    """What speculation has cost and brought so far, kept from answer to answer.

    A guess and a verification cost what machine, model and index make them cost, and how often a guess is right
    depends on what is asked: a new answer need not find it out from nothing. Older observations count ever less.
    """

    TRUSTED = 32
    """guesses of earlier answers that count as much as a new answer's own"""

    def __init__(self) -> None:
        self.a: float | None = None
        """seconds of one guess; None before the first"""
        self._right = self._wrong = 0.0
        self._searches = np.zeros(5)  # decayed sums of 1, s, s², b and s·b, for the line b(s) = fixed + each·s

    def guessed(self, seconds: float) -> None:
        """One guess took so long, on the average of a window."""
        self.a = seconds if self.a is None else 0.7 * self.a + 0.3 * seconds

    def searched(self, queries: int, seconds: float) -> None:
        """A search for so many queries took so long."""
        new = np.array([1.0, queries, queries**2, seconds, queries * seconds])
        self._searches = 0.9 * self._searches + new

    def judged(self, matched: int, guessed: int) -> None:
        """A window of ``guessed`` guesses, of which the first ``matched`` were right."""
        self._right = 0.95 * self._right + matched
        self._wrong = 0.95 * self._wrong + (matched < guessed)

    @property
    def guesses(self) -> tuple[float, float]:
        """Right and wrong guesses, at most ``TRUSTED`` together."""
        share = min(1.0, self.TRUSTED / max(self._right + self._wrong, 1.0))
        return share * self._right, share * self._wrong

    @property
    def search_cost(self) -> tuple[float, float]:
        """(fixed, each): a search for s queries takes about fixed + each·s seconds; least squares, neither below 0."""
        count, x, xx, y, xy = self._searches
        if not count:
            return 0.0, 0.0
        spread = count * xx - x * x
        each = max(0.0, (count * xy - x * y) / spread) if spread > 1e-6 * count * xx else 0.0
        return max(0.0, (y - each * x) / count), float(each)


class Experiences:
    """An ``Experience`` for each kind of answer, the latest ``REMEMBERED`` of them."""

    REMEMBERED = 256

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, Experience] = OrderedDict()

    def of(self, kind: Hashable) -> Experience:
        """That of a kind: what decides about costs and about guesses, such as the model and what is searched."""
        experience = self._known.setdefault(kind, Experience())
        self._known.move_to_end(kind)
        if len(self._known) > self.REMEMBERED:
            self._known.popitem(last=False)
        return experience


class StrideScheduler:
    """OS³: how many strides to guess before the next verification.

    γ is ΣM / (ΣM + Σ1[M < s]) over the last windows, M the right guesses of a window. Where the published scheduler
    caps it at 0.6 and begins each text with s = 1, this one adds to what it has seen of a text what earlier ones have
    shown, and ``prior``. Where the published one takes a verification to cost b whatever s is, this one takes it to
    cost what a line through the searches seen says.
    """

    PRIOR = (1.0, 0.25)
    """right and wrong guesses before any are seen, which matters while few are"""

    def __init__(
        self, options: SpeculationOptions, experience: Experience | None = None, prior: tuple[float, float] = PRIOR
    ) -> None:
        self._options = options
        self._experience = experience or Experience()
        self._earlier = self._experience.guesses
        self._prior = prior
        self._windows: deque[tuple[int, int]] = deque(maxlen=WINDOWS)
        self.a = 0.0
        """seconds of one guess, lately; of one stride before the first guess"""
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
        counts = zip(self._seen, self._earlier, self._prior, strict=True)
        right, wrong = (sum(count) for count in counts)
        return right / (right + wrong)

    @property
    def informed(self) -> bool:
        """Whether a guess has been timed, or the stride is given."""
        return self._options.stride is not None or self._experience.a is not None

    def next(self) -> int:
        """Guesses of the next window; 0 to search first, and only judge the guess."""
        options = self._options
        if options.stride is not None:
            return options.stride
        stride = self.best() if self._windows or self.informed else 1
        fixed, each = self._experience.search_cost
        return stride if speculation_pays(stride, self._a, fixed + each * stride, self.expected, options.overlap) else 0

    def best(self) -> int:
        """The stride that OS³ takes for the best, at least 1."""
        options = self._options
        if options.stride is not None:
            return options.stride
        fixed, each = self._experience.search_cost
        return best_stride(self._a, fixed, self.expected, options.overlap, options.longest, each)

    def guessed(self, seconds: float) -> None:
        """The guesses of a window took so long on the average."""
        self.a = seconds
        self._experience.guessed(seconds)

    def searched(self, queries: int, seconds: float) -> None:
        """A search took so long."""
        self.b = seconds
        self._experience.searched(queries, seconds)

    def record(self, matched: int, guessed: int) -> None:
        """A window of ``guessed`` guesses, of which the first ``matched`` were right."""
        self._windows.append((matched, guessed))
        self._experience.judged(matched, guessed)

    @property
    def _a(self) -> float:
        return self.a if self._experience.a is None else self._experience.a

    @property
    def _seen(self) -> tuple[int, int]:
        return sum(m for m, _ in self._windows), sum(m < s for m, s in self._windows)
