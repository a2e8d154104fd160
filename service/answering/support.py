"""The rule of support: whether the evidence carries a claim, whole, and where.

A claim is *verbatim* where it is one or more whole sentences of the evidence, word for word (`alignment`); *attributed*
where each of its parts is carried by one sentence (`carrying`), closely enough; else it has no support. What repeats
itself, is cut, or is no sentence is never supported. A supported claim is stored; whether it is true, or answers the
question, is another matter.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal

from retrieval.parsing.sentences import sentences
from service.answering.alignment import align
from service.answering.carrying import carries
from service.answering.claims import MARKERS, Claim, claims
from service.answering.lexicon import LEXICONS, Lexicon, lexicon_of
from service.answering.passages import Passage, Span
from service.answering.placing import similarity
from service.answering.reading import Reading, replaced
from service.answering.refusals import is_refusal
from service.answering.words import CJK, Token, tokens

Support = Literal["verbatim", "attributed", "none"]

THRESHOLD = 0.8
"""Least closeness of an attributed claim, set on the development half of eval/qa/support_dev.json."""
_CANDIDATES = 8
_LONGEST_RUN = 4
"""sentences that one verbatim claim may run over"""
_REACH = 3
"""sentences before one in which its pronoun's noun is looked for"""
_LONGEST_SUBJECT = 10
_BROKEN = 4
"""words of a verbatim claim that may stand in the text in other letters: broken at a line's end, with ligatures"""
_SHORTEST = 3
"""words of the shortest claim"""

_WORD = re.compile(rf"[{CJK}]|[^\W_{CJK}]+(?:[.,]\d+)*")
_WRAPPED = re.compile(r"^[\s\"“”„«»*_]+|[\s\"“”„«»*_]+$")
_LIST_MARK = re.compile(r"(?:[-*+•‣–]|\(?\d{1,3}[.)])\s+|[\"“„«*_#>\s]+")
_TRAILING = "\"'”’»)]*_ \t\r\n.!…。"
_ROW = re.compile(r"[^\n]*\S \| \S[^\n]*")


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


@dataclass(frozen=True, slots=True)
class _Unit:
    """A sentence of a passage, or a row of a table: ``passages[passage].text[start:end]``."""

    passage: int
    start: int
    end: int


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
            _says_enough(passage.text[start:end]) for passage in self._passages for start, end in _units(passage.text)
        )

    @cached_property
    def _index(self) -> _Index:
        return _Index(self._passages)

    def _supported(self, claim: Claim) -> Supported:
        words = _words(claim.text)
        if (
            "\ufffd" in claim.text
            or repeats(words)
            or any(words == _words(e.claim.text) and e.claim.context == claim.context for e in self._judged)
        ):
            return Supported(claim, "none")
        spans = self._verbatim(claim)
        if spans:
            return Supported(claim, "verbatim", spans, 1.0)
        if claim.text.rstrip(_TRAILING).endswith(("?", "？")):
            return Supported(claim, "none")
        score, spans = self._attributed(claim)
        return Supported(claim, "attributed", spans, score) if spans else Supported(claim, "none", score=score)

    def _verbatim(self, claim: Claim) -> tuple[Span, ...]:
        text = plain(claim.text)
        for form in dict.fromkeys((text, *(unframed(text, lexicon) for lexicon in self._index.lexicons))):
            if claim.kind == "cell" or not _says_enough(form):
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
        at = _pronoun(reading)
        if at is not None and self._judged:
            subject = self._subject_before(lexicon)
            if subject is None:
                return None
            reading = replaced(reading, at, subject)
        words = sum(token.kind != "mark" for token in reading.tokens)
        return reading if words >= _SHORTEST and len(reading.content) >= 2 else None

    def _subject_before(self, lexicon: Lexicon) -> list[Token] | None:
        """What the last claim before spoke of."""
        for earlier in reversed(self._judged[-_REACH:]):
            reading = Reading.of(tokens(plain(earlier.claim.text), lexicon), lexicon)
            if _pronoun(reading) is None:
                return _subject(reading)
        return None

    def _carried(self, reading: Reading, text: str, lexicon: Lexicon) -> tuple[float, list[_Unit]]:
        """How closely the evidence carries a claim, and by what: one sentence, or one for each of its clauses."""
        best: tuple[float, list[_Unit]] = (0.0, [])
        for number in self._index.candidates(text):
            best = max(best, self._index.carried(reading, number), key=lambda found: found[0])
        if best[0] >= THRESHOLD:
            return best
        clauses = _clauses(reading)
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

    def _span(self, claim: Claim, unit: _Unit, quoted: bool = False) -> Span:
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


class _Index:
    """The sentences of the evidence by the words in them."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = passages
        self._languages = [_language(passage.text) for passage in passages]
        self.lexicons = [
            LEXICONS[code] for code in dict.fromkeys(one.code for one in self._languages if one is not None)
        ]
        self._units: list[_Unit] = []
        self._postings: defaultdict[str, list[int]] = defaultdict(list)
        for number, passage in enumerate(passages):
            for start, end in _units(passage.text):
                for word in set(_words(passage.text[start:end])):
                    self._postings[word].append(len(self._units))
                self._units.append(_Unit(number, start, end))
        self._reading = lru_cache(maxsize=256)(self._read)
        self._candidates = lru_cache(maxsize=8)(self._search)

    def candidates(self, text: str) -> list[int]:
        """Numbers of the sentences that share most with a text, best first."""
        return self._candidates(text)

    def _search(self, text: str) -> list[int]:
        scores: Counter[int] = Counter()
        for word in set(_words(text)):
            rows = self._postings.get(word, ())
            if len(rows) * 4 > len(self._units) > 400:
                continue  # a word of every fourth sentence tells nothing
            for row in rows:
                scores[row] += math.log(1 + len(self._units) / len(rows))  # type: ignore[assignment]
        return [row for row, _ in sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:_CANDIDATES]]

    def weight(self, key: str) -> float:
        """How much a word says: its idf."""
        return math.log(1 + (len(self._units) + 1) / (len(self._postings.get(key, ())) + 1))

    def whole(self, number: int, text: str) -> _Unit | None:
        """The run of whole sentences from this one on that a text repeats."""
        unit = self._units[number]
        last = number
        while (
            last + 1 < len(self._units)
            and self._units[last + 1].passage == unit.passage
            and last - number < _LONGEST_RUN
        ):
            last += 1
        stored = self._passages[unit.passage].text
        words = set(_words(text))
        if len(words - set(_words(stored[unit.start : self._units[last].end]))) > max(_BROKEN, len(words) // 8):
            return None  # to align them would cost more
        found = align(text, stored[unit.start : self._units[last].end])
        if found is None:
            return None
        start, end = unit.start + found[0], unit.start + found[1]
        mark = _LIST_MARK.match(stored, unit.start)
        if stored[(mark.end() if mark else unit.start) : start].strip("\"'“„«*_ ") and start != unit.start:
            return None
        for each in self._units[number : last + 1]:
            if end <= each.end:
                rest = stored[end : each.end]
                ends = not MARKERS.sub("", rest).strip(_TRAILING)
                return _Unit(unit.passage, start, max(end, each.end if ends and rest else end)) if ends else None
        return None

    def carried(self, claim: Reading, number: int) -> tuple[float, list[_Unit]]:
        """How closely a sentence carries a claim, and what is cited: it, and where its pronoun or name is explained."""
        unit = self._units[number]
        lexicon = self._languages[unit.passage]
        if lexicon is None or lexicon.code != claim.lexicon.code:
            return 0.0, []
        stored = self._passages[unit.passage].text
        if _ROW.fullmatch(stored, unit.start, unit.end):
            return self._row(claim, number), [unit]
        best: tuple[float, list[_Unit]] = (0.0, [])
        pronoun = _pronoun(claim)
        for reading, cited in self._readings(number):
            if pronoun is not None and not _same_pronoun(claim.tokens[pronoun], reading):
                continue
            named, also = self._named(claim, reading, unit)
            score = carries(named, reading, self.weight)
            best = max(best, (score, sorted({*cited, *also, unit}, key=lambda one: one.start)), key=lambda one: one[0])
        return best

    def _readings(self, number: int) -> Iterator[tuple[Reading, list[_Unit]]]:
        """A sentence as it stands, and with the noun that its pronoun stands for."""
        reading = self._reading(number)
        yield reading, []
        at = _pronoun(reading)
        if at is None:
            return
        for before in range(number - 1, max(-1, number - 1 - _REACH), -1):
            if self._units[before].passage != self._units[number].passage:
                return
            earlier = self._reading(before)
            if _pronoun(earlier) is None:
                subject = _subject(earlier)
                if subject:
                    yield replaced(reading, at, subject), [self._units[before]]
                return

    def _named(self, claim: Reading, sentence: Reading, unit: _Unit) -> tuple[Reading, list[_Unit]]:
        """The claim without the part of a name that the passage gives in full before this sentence, and where."""
        for one in claim.content:
            token = claim.tokens[one]
            if not token.capital or any(similarity(token, sentence.tokens[at]) for at in sentence.content):
                continue
            for other in (one + 1, one - 1):
                if other not in claim.content or not claim.tokens[other].capital:
                    continue
                if not any(similarity(claim.tokens[other], sentence.tokens[at]) for at in sentence.content):
                    continue
                pair = sorted((one, other))
                where = self._full_name([claim.tokens[at].lower for at in pair], unit)
                if where is not None:
                    return Reading.of([*claim.tokens[:one], *claim.tokens[one + 1 :]], claim.lexicon), [where]
        return claim, []

    def _full_name(self, names: Sequence[str], unit: _Unit) -> _Unit | None:
        rows = [
            row for row in self._postings.get(_key(names[0]), ()) if row in set(self._postings.get(_key(names[1]), ()))
        ]
        stored = self._passages[unit.passage].text
        for row in rows:
            each = self._units[row]
            if each.passage == unit.passage and each.start < unit.start:
                words = r"\s+".join(map(re.escape, names))
                if re.search(rf"\b{words}\b", stored[each.start : each.end].casefold()):
                    return each
        return None

    def _row(self, claim: Reading, number: int) -> float:
        """Whether a row of a table says it: every word in it, and with each figure the name of its column."""
        if any(claim.operator):
            return 0.0
        unit = self._units[number]
        stored = self._passages[unit.passage].text[unit.start : unit.end]
        cells = [Reading.of(tokens(cell, claim.lexicon), claim.lexicon) for cell in stored.split(" | ")]
        used: dict[int, bool] = {}  # cell → whether it is named for a figure in it
        for one in claim.content:
            token = claim.tokens[one]
            holding = [n for n, cell in enumerate(cells) if _holds(cell, token)]
            if not holding:
                return 0.0
            figure = token.kind != "word"
            used[holding[0]] = used.get(holding[0], False) or figure
        for n, figure in used.items():
            colon = next((at for at, token in enumerate(cells[n].tokens) if token.key == ":"), -1)
            asked = [at for at in cells[n].content if figure or at > colon]
            if not all(_holds(claim, cells[n].tokens[at]) for at in asked):
                return 0.0
        return 1.0 if len(used) > 1 else 0.0

    def _read(self, number: int) -> Reading:
        unit = self._units[number]
        lexicon = self._languages[unit.passage]
        assert lexicon is not None
        return Reading.of(tokens(self._passages[unit.passage].text, lexicon, unit.start, unit.end), lexicon)


def _holds(reading: Reading, token: Token) -> bool:
    return any(similarity(token, reading.tokens[at]) for at in reading.content)


def plain(text: str) -> str:
    """A claim without what only dresses it: markers, emphasis, the quotation marks around it."""
    text = MARKERS.sub("", text)
    text = re.sub(r"(?<!\w)[*_]{1,3}(?=\S)|(?<=\S)[*_]{1,3}(?!\w)", "", text)
    return _WRAPPED.sub("", text)


def unframed(text: str, lexicon: Lexicon) -> str:
    """A claim without the words in front that only name its source."""
    framing = lexicon.framing.match(text)
    return _WRAPPED.sub("", text[framing.end() :]) if framing else text


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


def _units(text: str) -> Iterator[tuple[int, int]]:
    """Sentences, and the rows of tables, each alone."""
    for start, end in sentences(text):
        at = start
        for row in _ROW.finditer(text, start, end):
            if row.start() > at and text[at : row.start()].strip():
                yield at, row.start()
            yield row.span()
            at = row.end()
        if at < end and text[at:end].strip():
            lead = len(text[at:end]) - len(text[at:end].lstrip())
            yield at + lead, end


def _language(text: str) -> Lexicon | None:
    """That of its words; for a table without any, English, which reads names and figures."""
    return lexicon_of(text) or (LEXICONS["en"] if _ROW.search(text) else None)


def _says_enough(text: str) -> bool:
    words = _words(text)
    return len(words) >= _SHORTEST and len(set(words)) >= _SHORTEST


@lru_cache(maxsize=65536)
def _key(word: str) -> str:
    """The English stem: it serves to find sentences of any language, not to compare them."""
    return LEXICONS["en"].stem(word)


def _words(text: str) -> list[str]:
    return [_key(word) for word in _WORD.findall(text.casefold())]


def _pronoun(reading: Reading) -> int | None:
    """The place of a personal pronoun that is the subject of a sentence, or None."""
    for at, token in enumerate(reading.tokens):
        if token.kind != "word":
            continue
        if token.lower in reading.lexicon.pronouns and token.lower not in reading.lexicon.determiners:
            return at
        if reading.is_verb(at) or (at in reading.content and not reading.role[at]):
            return None
    return None


def _same_pronoun(pronoun: Token, sentence: Reading) -> bool:
    at = _pronoun(sentence)
    return at is not None and sentence.tokens[at].lower == pronoun.lower


def _subject(reading: Reading) -> list[Token] | None:
    """What a sentence speaks of: from the first noun or name that stands behind no preposition to the verb."""
    found: list[Token] = []
    for at, token in enumerate(reading.tokens):
        if found and (reading.is_verb(at) or token.kind == "mark"):
            break
        if found or (at in reading.content and not reading.is_verb(at) and not reading.role[at]):
            found.append(token)
    return found[:_LONGEST_SUBJECT] or None


def _clauses(reading: Reading) -> list[Reading]:
    """The clauses of a claim, each with a subject: that of the first where it has none; none for a single clause."""
    lexicon = reading.lexicon
    parts: list[list[Token]] = [[]]
    for at, token in enumerate(reading.tokens):
        word = token.lower if token.kind == "word" and not token.named else ""
        if (
            token.key == ";"
            or word in lexicon.conjunctions
            or (word in ("which", "who") and at and reading.tokens[at - 1].key == ",")
        ):
            parts.append([])
        else:
            parts[-1].append(token)
    read = [Reading.of(part, lexicon) for part in parts if part]
    if len(read) < 2 or not all(each.has_predicate() and len(each.content) > 1 for each in read):
        return []
    subject = _subject(read[0])
    done = [read[0]]
    for each in read[1:]:
        verb = next((at for at, token in enumerate(each.tokens) if each.is_verb(at) or token.kind == "formula"), None)
        if verb is None:
            return []
        owned = [at for at in each.content if at < verb and not each.role[at]]
        pronoun = _pronoun(each)
        if pronoun is None and owned:
            done.append(each)
        elif subject is None:
            return []
        elif pronoun is not None:
            done.append(replaced(each, pronoun, subject))
        else:
            done.append(Reading.of([*(replace(token, opens=False) for token in subject), *each.tokens], lexicon))
    return done
