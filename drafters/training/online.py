"""Online speculative decoding (arXiv 2310.07177): a trained drafter goes on learning from what it got wrong.

Of an answer are kept the target's states and which of its tokens were guessed wrongly; once it is finished the head
learns the target's distribution there, of all engine time a share at most. What it becomes is a new *version*, which
answers that begin later use: none ever sees two. A version that does not lower the loss on the newest answer, which it
did not learn from, is dropped; the one before is kept, and `restore` goes back to it.

It is one owner's, in memory alone, within the bounds and the deletes of all that drafters learn (`learned`). Tokens are
those of plain decoding whatever it becomes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drafters.heads.head import Head
from drafters.training.trainer import distilled

_LESSON = 256  # tokens of an answer
_LESSONS = 8
_STEPS = 8  # of an update
_MOST_S = 1.0  # seconds of an update, in which nobody is answered
_LEAST = 0.1  # how much a token counts that was guessed, beside one that was not
_RATE = 1e-2  # of a weight's own size, a step


@dataclass(frozen=True)
class Lesson:
    """The end of an answer: tokens int64 [n], the states after them in half precision [n, layers and LAST, hidden], and
    how much each token counts [n]."""

    tokens: Tensor
    states: Tensor
    weights: Tensor

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + self.states.nbytes + self.weights.nbytes


class Notes:
    """What is kept of one answer while it is written."""

    def __init__(self) -> None:
        self._first = 0  # place of the first token whose states are there
        self._states: list[Tensor] = []
        self._missed: set[int] = set()

    def read(self, start: int, states: Tensor) -> None:
        """States [n, layers and LAST, hidden] of the tokens from `start` on; behind a gap it begins anew."""
        known = self._first + len(self._states)
        if start > known:
            self._first, self._states, known = start, [], start
        self._states += states[known - start :].half().unbind(0)
        if (behind := len(self._states) - _LESSON) > 0:
            self._first, self._states = self._first + behind, self._states[behind:]

    def miss(self, place: int) -> None:
        """The token at a place was guessed wrongly."""
        self._missed.add(place)

    def lesson(self, tokens: Sequence[int], shortest: int) -> Lesson | None:
        """What there is to learn; None where it is less than `shortest` tokens, or nothing was missed."""
        places = range(self._first, min(self._first + len(self._states), len(tokens)))
        missed = torch.tensor([place in self._missed for place in places])
        if len(places) < shortest or not missed.any():
            return None
        with torch.inference_mode(False):  # what was made in it could not be learned from
            states = torch.stack([state.clone() for state in self._states[: len(places)]])
            return Lesson(torch.tensor(tokens[places.start : places.stop]), states, missed.float().clamp(min=_LEAST))


class Allowance:
    """Of one engine's time, whoever its owners are: what may be spent on learning."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def seconds(self, share: float) -> float:
        """A share of the time since some was last spent."""
        return min(share * (time.perf_counter() - self._since), _MOST_S)

    def spent(self) -> None:
        self._since = time.perf_counter()


@dataclass(frozen=True)
class Packing:
    """Where heads guess with packed weights: `plain` makes the base anew with weights that can be trained, `pack` of
    such a head one that guesses."""

    plain: Callable[[], Head]
    pack: Callable[[Head], Head]


class OnlineHead:
    """One owner's version of a trained drafter."""

    def __init__(self, base: Head, packing: Packing | None = None) -> None:
        self.head, self.version = base, 0
        self._packing = packing
        self._plain: Head | None = None  # the version with weights that can be trained, where it is not the base
        self._before: tuple[Head, Head | None] = base, None
        self._lessons: deque[Lesson] = deque(maxlen=_LESSONS)
        self._step_s = 0.0  # that a step took lately

    def take(self, lesson: Lesson | None, seconds: float) -> bool:
        """Learn from an answer too, in about so many seconds; whether time was spent on it."""
        if lesson is None:
            return False
        self._lessons.append(lesson)
        if len(self._lessons) < 2 or seconds <= 3 * self._step_s:  # two looks and a step
            return False
        with torch.inference_mode(False), torch.enable_grad():
            better = self._learned(time.perf_counter() + seconds)
        if better is not None:
            self._before, self.version = (self.head, self._plain), self.version + 1
            self._plain, self.head = better, self._packing.pack(better) if self._packing else better
        return True

    def restore(self) -> None:
        """Go back to the version before; answers that begin from now on use it."""
        (self.head, self._plain), self.version = self._before, self.version + 1

    @property
    def nbytes(self) -> int:
        """Bytes of lessons and versions."""
        versions = min(self.version, 2) * (6 if self._packing else 4) * self.head.num_parameters
        return versions + sum(lesson.nbytes for lesson in self._lessons)

    def _learned(self, until: float) -> Head | None:
        """A head that learned from all answers but the newest; None where it is no better at that one."""
        *taught, held = self._lessons
        student = self._student()
        own = student.trainable()
        optimiser = torch.optim.Adafactor(own, lr=_RATE)
        random = torch.Generator().manual_seed(self.version)
        student.train()
        with torch.no_grad():
            before = _loss(student, held, random)
        for step in range(_STEPS):
            started = time.perf_counter()
            optimiser.zero_grad()
            _loss(student, taught[-1 - step % len(taught)], random).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            self._step_s = time.perf_counter() - started
            if time.perf_counter() + 2 * self._step_s > until:
                break
        with torch.no_grad():
            after = _loss(student, held, random)
        return student.eval().requires_grad_(False) if after < before else None

    def _student(self) -> Head:
        """The newest version, to be trained on."""
        if self._plain is not None:
            return self._plain.copied()
        return self._packing.plain() if self._packing else self.head.copied()


def _loss(head: Head, lesson: Lesson, random: torch.Generator) -> Tensor:
    return distilled(head, lesson.tokens[None], lesson.states.float()[None], random, weights=lesson.weights[None])
