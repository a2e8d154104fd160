"""The sentences of the evidence: found by the words in them, and asked whether they repeat or carry a claim."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from retrieval.parsing.sentences import sentences
from service.answering.passages import Passage
from service.answering.support.alignment import align
from service.answering.support.carrying import carries
from service.answering.support.claims import MARKERS
from service.answering.support.lexicon import LEXICONS, Lexicon, lexicon_of
from service.answering.support.placing import similarity
from service.answering.support.reading import Reading, pronoun_of, replaced, same_pronoun, subject_of
from service.answering.support.words import CJK, Token, tokens

REACH = 3
"""sentences before one in which its pronoun's noun is looked for"""
SHORTEST = 3
"""words of the shortest claim"""
TRAILING = "\"'”’»)]*_ \t\r\n.!…。"
"""what may stand behind a sentence and say nothing"""
_CANDIDATES = 8
_LONGEST_RUN = 4
"""sentences that one verbatim claim may run over"""
_WORD = re.compile(rf"[{CJK}]|[^\W_{CJK}]+(?:[.,]\d+)*")
_WRAPPED = re.compile(r"^[\s\"“”„«»*_]+|(?<![\s\"“”„«»*_])[\s\"“”„«»*_]++$")
_LIST_MARK = re.compile(r"(?:[-*+•‣–]|\(?\d{1,3}[.)])\s+|[\"“„«*_#>\s]+")
_CELLS = re.compile(r"\S \| \S")
"""what a line has that is a row of a table"""


@dataclass(frozen=True, slots=True)
class Unit:
    """A sentence of a passage, or a row of a table: ``passages[passage].text[start:end]``."""

    passage: int
    start: int
    end: int


class SentenceIndex:
    """The sentences of the evidence by the words in them."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = passages
        self._languages = [language_of(passage.text) for passage in passages]
        self.lexicons = [
            LEXICONS[code] for code in dict.fromkeys(one.code for one in self._languages if one is not None)
        ]
        self._units: list[Unit] = []
        self._postings: defaultdict[str, list[int]] = defaultdict(list)
        for number, passage in enumerate(passages):
            for start, end in units_of(passage.text):
                for word in set(words_of(passage.text[start:end])):
                    self._postings[word].append(len(self._units))
                self._units.append(Unit(number, start, end))
        self._reading = lru_cache(maxsize=256)(self._read)
        self._candidates = lru_cache(maxsize=8)(self._search)

    def candidates(self, text: str) -> list[int]:
        """Numbers of the sentences that share most with a text, best first."""
        return self._candidates(text)

    def _search(self, text: str) -> list[int]:
        scores: Counter[int] = Counter()
        for word in set(words_of(text)):
            rows = self._postings.get(word, ())
            if len(rows) * 4 > len(self._units) > 400:
                continue  # a word of every fourth sentence tells nothing
            for row in rows:
                scores[row] += math.log(1 + len(self._units) / len(rows))  # type: ignore[assignment]
        return [row for row, _ in sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:_CANDIDATES]]

    def weight(self, key: str) -> float:
        """How much a word says: its idf."""
        return math.log(1 + (len(self._units) + 1) / (len(self._postings.get(key, ())) + 1))

    def whole(self, number: int, text: str) -> Unit | None:
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
        if _letters(text) not in _letters(stored[unit.start : self._units[last].end]):
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
                ends = not MARKERS.sub("", rest).strip(TRAILING)
                return Unit(unit.passage, start, max(end, each.end if ends and rest else end)) if ends else None
        return None

    def carried(self, claim: Reading, number: int) -> tuple[float, list[Unit]]:
        """How closely a sentence carries a claim, and what is cited: it, and where its pronoun or name is explained."""
        unit = self._units[number]
        lexicon = self._languages[unit.passage]
        if lexicon is None or lexicon.code != claim.lexicon.code:
            return 0.0, []
        stored = self._passages[unit.passage].text
        if next(_rows(stored, unit.start, unit.end), None) == (unit.start, unit.end):
            return self._row(claim, number), [unit]
        best: tuple[float, list[Unit]] = (0.0, [])
        pronoun = pronoun_of(claim)
        for reading, cited in self._readings(number):
            if pronoun is not None and not same_pronoun(claim.tokens[pronoun], reading):
                continue
            named, also = self._named(claim, reading, unit)
            score = carries(named, reading, self.weight)
            best = max(best, (score, sorted({*cited, *also, unit}, key=lambda one: one.start)), key=lambda one: one[0])
        return best

    def _readings(self, number: int) -> Iterator[tuple[Reading, list[Unit]]]:
        """A sentence as it stands, and with the noun that its pronoun stands for."""
        reading = self._reading(number)
        yield reading, []
        at = pronoun_of(reading)
        if at is None:
            return
        for before in range(number - 1, max(-1, number - 1 - REACH), -1):
            if self._units[before].passage != self._units[number].passage:
                return
            earlier = self._reading(before)
            if pronoun_of(earlier) is None:
                subject = subject_of(earlier)
                if subject:
                    yield replaced(reading, at, subject), [self._units[before]]
                return

    def _named(self, claim: Reading, sentence: Reading, unit: Unit) -> tuple[Reading, list[Unit]]:
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

    def _full_name(self, names: Sequence[str], unit: Unit) -> Unit | None:
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


def units_of(text: str) -> Iterator[tuple[int, int]]:
    """Sentences, and the rows of tables, each alone."""
    for start, end in sentences(text):
        at = start
        for row_start, row_end in _rows(text, start, end):
            if row_start > at and text[at:row_start].strip():
                yield at, row_start
            yield row_start, row_end
            at = row_end
        if at < end and text[at:end].strip():
            lead = len(text[at:end]) - len(text[at:end].lstrip())
            yield at + lead, end


def _rows(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Lines of ``text[start:end]`` that are rows of a table."""
    while start < end:
        stop = text.find("\n", start, end)
        stop = end if stop < 0 else stop
        if _CELLS.search(text, start, stop):
            yield start, stop
        start = stop + 1


def language_of(text: str) -> Lexicon | None:
    """That of its words; for a table without any, English, which reads names and figures."""
    return lexicon_of(text) or (LEXICONS["en"] if _CELLS.search(text) else None)


def _letters(text: str) -> str:
    """What two texts share that `align` finds alike: their letters and digits."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


@lru_cache(maxsize=65536)
def _key(word: str) -> str:
    """The English stem: it serves to find sentences of any language, not to compare them."""
    return LEXICONS["en"].stem(word)


def words_of(text: str) -> list[str]:
    return [_key(word) for word in _WORD.findall(text.casefold())]


def says_enough(text: str) -> bool:
    words = words_of(text)
    return len(words) >= SHORTEST and len(set(words)) >= SHORTEST


def _holds(reading: Reading, token: Token) -> bool:
    return any(similarity(token, reading.tokens[at]) for at in reading.content)


def plain(text: str) -> str:
    """A claim without what only dresses it: markers, emphasis, the quotation marks around it."""
    text = MARKERS.sub("", text)
    text = re.sub(r"(?<!\w)[*_]{1,3}(?=\S)|(?<=\S)[*_]{1,3}(?!\w)", "", text)
    return _WRAPPED.sub("", text)


def hangs(text: str, lexicon: Lexicon) -> bool:
    """Whether a text ends where something must follow: "shows itself by"."""
    last = text.split()[-1].casefold() if text else ""
    return last in lexicon.prepositions or last in lexicon.determiners or last in lexicon.conjunctions


def unframed(text: str, lexicon: Lexicon) -> str:
    """A claim without the words in front that only name its source."""
    framing = lexicon.framing.match(text)
    return _WRAPPED.sub("", text[framing.end() :]) if framing else text
