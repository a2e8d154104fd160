"""Words that the rule of support must know, by language: what joins, what denies, what weakens, what counts.

A claim may not add, drop or change an *operator* of its evidence: a negation, a hedge, a condition, a quantifier, a
comparison. The lists (`languages/*.toml`) are closed classes and short; in a language without one no claim is
attributed, only verbatim ones are supported.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

_CLOSED = "determiners pronouns possessives relatives conjunctions embedding auxiliaries copulas"
FOLDER = Path(__file__).parent / "languages"


@dataclass(frozen=True)
class Lexicon:
    """One language. Words are in small letters.

    Attributes:
        code: ISO 639-1.
        function: words without content of their own, those of the closed classes among them.
        relatives, conjunctions, embedding: what opens a clause; embedding words make it depend on what was said before.
        subjects: relatives that are the subject of their clause.
        copulas, passive: forms of "be": between two names of one thing, and before a participle.
        agent: the preposition of who did it, in the passive.
        light: words that a claim may have and its evidence not, as they say nothing of it ("mentioned").
        verbs: forms that can be what a sentence says, where their ending does not show it; bases: of others, in the
            base form, which is a noun as often.
        framing: words in front of a claim that name its source and no more ("According to the document, …").
        prepositions: word → class; two of one class can stand for each other.
        operators: word → class; operators of one class say the same.
        irregular: form → base. synonyms: stem → the first of its group.
        comma_decimal: whether 3,5 is three and a half, and 1.900 nineteen hundred.
        suffixes: endings of inflection, for languages other than English.
    """

    code: str
    comma_decimal: bool
    function: frozenset[str]
    determiners: frozenset[str]
    pronouns: frozenset[str]
    possessives: frozenset[str]
    relatives: frozenset[str]
    subjects: frozenset[str]
    conjunctions: frozenset[str]
    embedding: frozenset[str]
    auxiliaries: frozenset[str]
    copulas: frozenset[str]
    passive: frozenset[str]
    agent: frozenset[str]
    light: frozenset[str]
    verbs: frozenset[str]
    bases: frozenset[str]
    framing: re.Pattern[str]
    prepositions: Mapping[str, str]
    operators: Mapping[str, str]
    irregular: Mapping[str, str]
    synonyms: Mapping[str, str]
    numbers: Mapping[str, int]
    ordinals: Mapping[str, int]
    months: Mapping[str, int]
    magnitudes: Mapping[str, int]
    suffixes: tuple[str, ...]

    @classmethod
    def load(cls, code: str) -> Lexicon:
        """The words of `languages/{code}.toml`."""
        data = tomllib.loads((FOLDER / f"{code}.toml").read_text(encoding="utf-8"))
        sets = f"function subjects light verbs bases passive agent {_CLOSED}"
        irregular = dict(entry.split(":") for entry in data.get("irregular", "").split())
        words = {name: frozenset(data.get(name, "").split()) for name in sets.split()}
        prepositions = _classes(data["prepositions"])
        words["function"] = words["function"].union(prepositions, *(words[name] for name in _CLOSED.split()))
        return cls(
            code=code,
            comma_decimal=data["comma_decimal"],
            framing=re.compile(data["framing"], re.IGNORECASE),
            irregular={form: base for base, forms in irregular.items() for form in forms.split("/")},
            synonyms={
                word: group.split("/")[0] for group in data.get("synonyms", "").split() for word in group.split("/")
            },
            numbers=_counted(data["ones"], 0) | _counted(data["tens"], 20, 10) | data.get("numbers", {}),
            ordinals=_counted(data["ordinals"], 1),
            months=_counted(data["months"], 1),
            magnitudes=data["magnitudes"],
            suffixes=tuple(data.get("suffixes", "").split()),
            prepositions=prepositions,
            operators=_classes(data["operators"]),
            **words,
        )

    def stem(self, word: str) -> str:
        """What the forms of a word share; synonyms share it too."""
        return _stem(self, word)

    def is_verb(self, word: str) -> bool:
        """Whether a word can be what a sentence says of its subject."""
        if word in self.auxiliaries or word in self.verbs or word in self.irregular:
            return True
        if self.code != "en" or word in _NO_PARTICIPLES:
            return False
        if word.endswith("s"):
            return re.sub("ise$", "ize", _singular(word)) in self.bases
        return len(word) > 3 and word.endswith("ed")

    def __hash__(self) -> int:
        return hash(self.code)


def _counted(text: str, start: int, step: int = 1) -> dict[str, int]:
    """Words in their order, counted up; forms of one number are joined by a slash."""
    return {form: start + step * i for i, forms in enumerate(text.split()) for form in forms.split("/")}


def _classes(table: Mapping[str, Any]) -> dict[str, str]:
    return {word: name for name, words in table.items() for word in words.split()}


_NO_PARTICIPLES = frozenset(
    (
        "need",
        "seed",
        "feed",
        "deed",
        "weed",
        "reed",
        "breed",
        "speed",
        "shed",
        "sled",
        "hundred",
        "sacred",
        "naked",
        "wicked",
        "indeed",
        "exceed",
    )
)
_ISE = (
    "aris",
    "rais",
    "prais",
    "promis",
    "advis",
    "surpris",
    "exercis",
    "revis",
    "supervis",
    "advertis",
    "compris",
    "compromis",
)
"""beginnings of words in -ise that are written so in America too"""
LEXICONS = {code: Lexicon.load(code) for code in ("en", "de", "es", "fr")}
_WORD = re.compile(r"[^\W\d_]+")
_SAMPLE = 4000
"""characters by which a language is told"""


def lexicon_of(text: str) -> Lexicon | None:
    """The language whose function words a text has most of at its beginning, or None where it has none of any."""
    words = [word.casefold() for word in _WORD.findall(text[:_SAMPLE])]
    counts = {code: sum(word in lexicon.function for word in words) for code, lexicon in LEXICONS.items()}
    best = max(counts, key=lambda code: counts[code])
    return LEXICONS[best] if counts[best] else None


@lru_cache(maxsize=100_000)
def _stem(lexicon: Lexicon, word: str) -> str:
    if lexicon.code == "en":
        base = lexicon.irregular.get(word, word)
        stem = _english(base) if base == word else base
        for form in (base, stem, stem + "e"):
            if form in lexicon.synonyms:
                return _bare(lexicon.synonyms[form])
        return _bare(stem)
    for suffix in lexicon.suffixes:
        if word.endswith(suffix) and len(word) - len(suffix) >= 4:
            return word[: -len(suffix)]
    return word


def _singular(word: str) -> str:
    """ "studies" → "study", "passes" → "pass", "uses" → "use"."""
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("sses", "shes", "ches", "xes")) else word[:-1]


def _bare(stem: str) -> str:
    return stem[:-1] if len(stem) > 3 and stem.endswith("e") else stem


def _english(word: str) -> str:
    """Plural, third person, past and -ing taken off (Harman's S-stemmer and Porter's step 1b); American spelling."""
    if len(word) > 5:
        word = word.replace("our", "or")
        word = word if word.startswith(_ISE) else re.sub(r"is(e[ds]?|ing|ation)$", r"iz\1", word)
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-2] if word.endswith(("sses", "shes", "ches", "xes", "zes")) else word[:-1]
    if len(word) > 4 and word.endswith("ied"):
        return word[:-3] + "y"
    for suffix in ("ing", "ed"):
        body = word[: -len(suffix)]
        if word.endswith(suffix) and len(body) >= 3 and re.search(r"[aeiouy]", body):
            doubled = len(body) > 3 and body[-1] == body[-2] and body[-1] not in "lsz"
            return body[:-1] if doubled else body
    return word
