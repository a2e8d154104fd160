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
        stride: strides that one search decides about, all but the last of them guessed; None lets OS³ choose.
        longest: most of these that OS³ may choose.
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

    The paper leaves out that the stride of a wrong guess is written again. Where the last stride of a window is not
    guessed but written once its search is done (``speculation.py``), nothing is left out: behind every verification
    one stride is written, that one or a wrong one again.
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


class Line:
    """seconds ≈ fixed + each·count, by least squares, neither below 0; what is older counts ever less."""

    def __init__(self) -> None:
        self._sums = np.zeros(5)  # of 1, x, x², y, x·y

    def add(self, count: int, seconds: float) -> None:
        """So many took so long."""
        self._sums = 0.9 * self._sums + np.array([1.0, count, count**2, seconds, count * seconds])

    def fit(self, proportional: bool) -> tuple[float, float]:
        """(fixed, each). proportional: where all counts were about equal, nothing is fixed, else everything is."""
        n, x, xx, y, xy = self._sums
        if not n:
            return 0.0, 0.0
        spread = n * xx - x * x
        if spread <= 1e-3 * n * xx:
            return (0.0, float(y / x)) if proportional else (float(y / n), 0.0)
        each = float(np.clip((n * xy - x * y) / spread, 0.0, y / x))
        return max(0.0, float(y - each * x) / float(n)), each


class Experience:
    """What speculation has cost and brought so far, kept from answer to answer.

    Guesses and verifications cost what machine, model and index make them cost, and how often a guess is right depends
    on what is asked: a new answer need not find it out from nothing. Older observations count ever less.
    """

    TRUSTED = 32
    """guesses of earlier answers that count as much as a new answer's own"""
    NEIGHBOURS = 24
    """outcomes from which the chance of a guess is read, half of all while there are few"""

    def __init__(self) -> None:
        self.informed = False
        """whether guesses have been timed"""
        self._guesses, self._searches = Line(), Line()
        self._right = self._wrong = 0.0
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=256)

    def guessed(self, count: int, seconds: float) -> None:
        """So many guesses, one after the other, took so long together."""
        self.informed = True
        self._guesses.add(count, seconds)

    def searched(self, queries: int, seconds: float) -> None:
        """A search for so many queries took so long."""
        self._searches.add(queries, seconds)

    def judged(self, matched: int, guessed: int) -> None:
        """A window of ``guessed`` guesses, of which the first ``matched`` were right."""
        self._right = 0.95 * self._right + matched
        self._wrong = 0.95 * self._wrong + (matched < guessed)

    def turned_out(self, likeness: float, right: bool) -> None:
        """How a guess did whose query was so like the one that was searched for last."""
        self._outcomes.append((likeness, right))

    def chance(self, likeness: float, prior: tuple[float, float]) -> float:
        """The probability that a guess is right, by the latest ``NEIGHBOURS`` whose queries were about as like.

        The more a query has drifted from the one whose chunks are at hand, the more often its best chunk is another.
        """
        latest = reversed(self._outcomes)
        count = min(self.NEIGHBOURS, max(6, len(self._outcomes) // 2))
        near = sorted(latest, key=lambda outcome: abs(outcome[0] - likeness))[:count]
        return (prior[0] + sum(right for _, right in near)) / (sum(prior) + len(near))

    @property
    def guesses(self) -> tuple[float, float]:
        """Right and wrong guesses, at most ``TRUSTED`` together."""
        share = min(1.0, self.TRUSTED / max(self._right + self._wrong, 1.0))
        return share * self._right, share * self._wrong

    @property
    def costs(self) -> tuple[float, float, float]:
        """(a, b, c): a window of s guesses takes about s·a to make and b + s·c to verify.

        What making guesses takes besides, because a search went before (its threads have not come to rest, and the
        model's data have left the processor's caches), is no cost of a guess but of a window: it is in b.
        """
        beside, a = self._guesses.fit(proportional=True)
        b, c = self._searches.fit(proportional=False)
        return a, beside + b, c


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
    shown, and ``prior``. Where the published one takes the latest guess for a, and the latest verification for b
    whatever s was, this one draws lines through those it has seen (``Experience.costs``). And where the published one
    takes every guess to be as good as the next, ``take`` tells them apart by how far the query has drifted.
    """

    PRIOR = (1.0, 0.5)
    """right and wrong guesses before any are seen, which matters while few are"""

    def __init__(
        self, options: SpeculationOptions, experience: Experience | None = None, prior: tuple[float, float] = PRIOR
    ) -> None:
        self._options = options
        self._experience = experience or Experience()
        self._earlier = self._experience.guesses
        self._prior = prior
        self._windows: deque[tuple[int, int]] = deque(maxlen=WINDOWS)
        self._made = 0
        self._sure = 1.0
        """the chance that all guesses of this window are right"""
        self._rate = 0.0
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
        return self._options.stride is not None or self._experience.informed

    def open(self) -> None:
        """A window begins."""
        self._made, self._sure = 0, 1.0
        a, b, each = self._costs
        best = self.best()
        self._rate = expected_rate(best, a, b + each * best, self.expected, self._options.overlap)

    def take(self, likeness: float) -> bool:
        """Take another guess into the window if it pays; else it is time to search for it, and for those guessed.

        A further guess adds to the window the chance that it and all before it are right, and the time of a guess. It
        pays while that is more a second than OS³'s best window brings. With the same chance for every guess this makes
        just that window.
        """
        options = self._options
        sure = self._sure_with(likeness)
        if options.stride is not None:
            pays = self._made < options.stride - 1
        else:
            a, _, each = self._costs
            pays = self._made < options.longest - 1 and sure >= self._rate * (a + each)
        if pays:
            self._made, self._sure = self._made + 1, sure
        return pays

    def made(self, likeness: float) -> None:
        """A guess of this window was made before it was opened."""
        self._made, self._sure = self._made + 1, self._sure_with(likeness)

    def _sure_with(self, likeness: float) -> float:
        """The chance that all guesses of this window and one more are right."""
        return self._sure * self._experience.chance(likeness, self._prior)

    def turned_out(self, likeness: float, right: bool) -> None:
        """See ``Experience.turned_out``."""
        self._experience.turned_out(likeness, right)

    def best(self) -> int:
        """The stride that OS³ takes for the best, at least 1."""
        options = self._options
        if options.stride is not None:
            return options.stride
        a, b, each = self._costs
        return best_stride(a, b, self.expected, options.overlap, options.longest, each)

    def guessed(self, count: int, seconds: float) -> None:
        """So many guesses, one after the other, took so long together."""
        self.a = seconds / count
        self._experience.guessed(count, seconds)

    def searched(self, queries: int, seconds: float) -> None:
        """A search for so many queries took so long."""
        self.b = seconds
        self._experience.searched(queries, seconds)

    def record(self, matched: int, guessed: int) -> None:
        """A window of ``guessed`` guesses, of which the first ``matched`` were right."""
        self._windows.append((matched, guessed))
        self._experience.judged(matched, guessed)

    @property
    def _costs(self) -> tuple[float, float, float]:
        a, b, each = self._experience.costs
        return (a if self._experience.informed else self.a), b, each

    @property
    def _seen(self) -> tuple[int, int]:
        return sum(m for m, _ in self._windows), sum(m < s for m, s in self._windows)
