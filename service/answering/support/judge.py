"""The rule of support: whether the evidence carries a claim, whole, and where.

A claim is *verbatim* where it is one or more whole sentences of the evidence, word for word (`alignment`); *attributed*
where each of its parts is carried by one sentence (`carrying`), closely enough; else it has no support. What repeats
itself, is cut, or is no sentence is never supported. A supported claim is stored; whether it is true, or answers the
question, is another matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from service.answering.passages import Passage, Span
from service.answering.support.claims import Claim, claims
from service.answering.support.lexicon import Lexicon
from service.answering.support.reading import Reading, clauses_of, pronoun_of, replaced, subject_of
from service.answering.support.refusals import is_refusal
from service.answering.support.sentence_index import (
    REACH,
    SHORTEST,
    TRAILING,
    SentenceIndex,
    Unit,
    hangs,
    plain,
    says_enough,
    unframed,
    units_of,
    words_of,
)
from service.answering.support.words import Token, tokens

Support = Literal["verbatim", "attributed", "none"]

THRESHOLD = 0.8
"""Least closeness of an attributed claim, set on the development half of the pairs of `folio eval support`."""


@dataclass(frozen=True, slots=True)
class Supported:
    """A claim and what the evidence says of it.

    Attributes:
        spans: what carries it, in the order of the claim; empty without support.
        score: closeness in [0, 1]; 1 for a verbatim claim.
    """

    claim: Claim
    support: Support
    spans: tuple[Span, ...] = ()
    score: float = 0.0


def judge(answer: str, passages: Sequence[Passage], finished: bool = True) -> list[Supported]:
    """Every claim of an answer with its support in the evidence, in order.

    Args:
        finished: the model ended the answer itself; else its last claim may lack its end and has no support.
    """
    return Judge(passages).judge(answer, finished)


class Judge:
    """Judges the claims of one answer as they come, over evidence that is indexed once.

    Its work grows with the claims and not with the evidence, which is gone through when the first claim is judged.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = passages
        self._judged: list[Supported] = []
        self._seen = 0

    def judge(self, answer: str, finished: bool = True) -> list[Supported]:
        """All claims of the answer so far; those judged before are not judged again.

        That the documents do not say something is no claim about what they say, and is left out.
        """
        unfinished = []
        for claim in claims(answer, finished)[self._seen :]:
            if not claim.whole:
                unfinished.append(Supported(claim, "none"))
                break
            self._seen += 1
            if not is_refusal(claim.text):
                self._judged.append(self._supported(claim))
        return [*self._judged, *unfinished]

    @property
    def can_support(self) -> bool:
        """Whether the evidence holds a single sentence."""
        return any(
            says_enough(passage.text[start:end]) for passage in self._passages for start, end in units_of(passage.text)
        )

    @cached_property
    def _index(self) -> SentenceIndex:
        return SentenceIndex(self._passages)

    def _supported(self, claim: Claim) -> Supported:
        if self._is_none(claim):
            return Supported(claim, "none")
        spans = self._verbatim(claim)
        if spans:
            return Supported(claim, "verbatim", spans, 1.0)
        if claim.text.rstrip(TRAILING).endswith(("?", "？")):
            return Supported(claim, "none")
        score, spans = self._attributed(claim)
        return Supported(claim, "attributed", spans, score) if spans else Supported(claim, "none", score=score)

    def _is_none(self, claim: Claim) -> bool:
        """Whether a text is broken, runs in a circle or lacks its end: nothing supports it, whatever is stored."""
        words = words_of(claim.text)
        again = any(words == words_of(one.claim.text) and one.claim.context == claim.context for one in self._judged)
        cut = any(hangs(plain(claim.text), lexicon) for lexicon in self._index.lexicons)
        return "\ufffd" in claim.text or repeats(words) or again or cut

    def _verbatim(self, claim: Claim) -> tuple[Span, ...]:
        text = plain(claim.text)
        for form in dict.fromkeys((text, *(unframed(text, lexicon) for lexicon in self._index.lexicons))):
            if claim.kind == "cell" or not says_enough(form):
                continue
            for number in self._index.candidates(form):
                found = self._index.whole(number, form)
                if found:
                    return (self._span(claim, found, quoted=True),)
        return ()

    def _attributed(self, claim: Claim) -> tuple[float, tuple[Span, ...]]:
        best: float = 0.0
        spans: tuple[Span, ...] = ()
        for lexicon in self._index.lexicons:
            reading = self._read(claim, lexicon)
            if reading is None:
                continue
            score, units = self._carried(reading, plain(claim.text), lexicon)
            if score > best:
                best, spans = score, tuple(self._span(claim, unit) for unit in units)
        return best, spans if best >= THRESHOLD else ()

    def _read(self, claim: Claim, lexicon: Lexicon) -> Reading | None:
        """What a claim says, with its context and the noun that its pronoun stands for; None for no sentence.

        The pronoun of the first claim stands for something in the question: it is carried by a sentence with the same.
        """
        text = unframed(plain(claim.text), lexicon)
        reading = Reading.of(tokens(text, lexicon), lexicon)
        if claim.context and (claim.kind == "cell" or not reading.has_predicate()):
            reading = Reading.of(tokens(f"{plain(claim.context).rstrip(':： ')} {text}", lexicon), lexicon)
        elif claim.kind != "cell" and not reading.has_predicate():
            return None
        at = pronoun_of(reading)
        if at is not None and self._judged:
            subject = self._subject_before(lexicon)
            if subject is None:
                return None
            reading = replaced(reading, at, subject)
        words = sum(token.kind != "mark" for token in reading.tokens)
        return reading if words >= SHORTEST and len(reading.content) >= 2 else None

    def _subject_before(self, lexicon: Lexicon) -> list[Token] | None:
        """What the last claim before spoke of."""
        for earlier in reversed(self._judged[-REACH:]):
            reading = Reading.of(tokens(plain(earlier.claim.text), lexicon), lexicon)
            if pronoun_of(reading) is None:
                return subject_of(reading)
        return None

    def _carried(self, reading: Reading, text: str, lexicon: Lexicon) -> tuple[float, list[Unit]]:
        """How closely the evidence carries a claim, and by what: one sentence, or one for each of its clauses."""
        best: tuple[float, list[Unit]] = (0.0, [])
        for number in self._index.candidates(text):
            best = max(best, self._index.carried(reading, number), key=lambda found: found[0])
        if best[0] >= THRESHOLD:
            return best
        clauses = clauses_of(reading)
        found = []
        for clause in clauses:
            words = " ".join(token.lower for token in clause.tokens)
            found.append(
                max(
                    (self._index.carried(clause, number) for number in self._index.candidates(words)),
                    key=lambda one: one[0],
                    default=(0.0, []),
                )
            )
        if len(found) > 1 and all(score >= THRESHOLD for score, _ in found):
            return min(score for score, _ in found), list(dict.fromkeys(unit for _, units in found for unit in units))
        return best

    def _span(self, claim: Claim, unit: Unit, quoted: bool = False) -> Span:
        passage = self._passages[unit.passage]
        at = passage.start
        return Span(
            passage.document,
            at + unit.start,
            at + unit.end,
            passage.page,
            passage.text[unit.start : unit.end],
            quoted=quoted,
            answer_start=claim.start,
            answer_end=claim.end,
            label=unit.passage + 1,
        )


def repeats(words: Sequence[str]) -> bool:
    """Whether a text runs in a circle: the same words three times on end, or hardly a new one among many."""
    count = len(words)
    if any(len(word) > 5 and len(set(word)) == 1 for word in words):
        return True
    for size in range(1, count // 3 + 1):
        for start in range(count - 3 * size + 1):
            if (
                words[start : start + size]
                == words[start + size : start + 2 * size]
                == words[start + 2 * size : start + 3 * size]
            ):
                return True
    for size in range(3, count // 2 + 1):
        for start in range(count - 2 * size + 1):
            if words[start : start + size] == words[start + size : start + 2 * size]:
                return True
    return count >= 24 and len(set(words)) < 0.35 * count
