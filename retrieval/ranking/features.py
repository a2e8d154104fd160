"""What can be seen of a sentence without reading it: shared words, the kind of answer asked for, its form.

Cheap enough for every sentence of a book, and of no encoder's making: they choose what a cross-encoder reads, and stand
beside its score.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from retrieval.analysis.terms import terms

STEM = 5
"""Letters by which two words are taken for forms of one, a last s aside: crude, and the same in every language."""
_COMMON_WORDS = (
    "a an and are as at be been but by can could did do does for from had has have he her his how i if in into is it "
    "its many me much my not of on one or our she should so such tell than that the their them then there these they "
    "this to us was we were what when where which who whom whose why will with would you your "
    "am auf aus bei das dem den der des die ein eine einem einen einer es für hat ihr im in ist man mit nach sich sie "
    "sind und von war waren warum wann was welche welchem welchen welcher welches wem wen wer wie wieviel viele wo zu "
    "zum zur al como con cual cuál cuando cuándo cuánto cuántos de del donde dónde el ella en era es fue ha la las lo "
    "los más no para pero por porque qué que quien quién se son su sus un una y à au aux ce combien dans est et le les "
    "ou où par pour pourquoi quand quel quelle qui sur"
)
COMMON = frozenset(_COMMON_WORDS.split())
_ASKS = {
    "number": r"how (?:many|much|old|long|far|high|tall|large|big|often|fast|deep|heavy)|what (?:percent\w*|number|"
    r"share|age)|wie ?viele?|wie (?:hoch|alt|lang|groß|weit|schwer)|cuánt[oa]s?|combien",
    "time": r"when|(?:what|which) (?:year|date|day|month|century|decade|time)|how long ago|wann|"
    r"welche[mns]? (?:jahr|datum|monat|tag)|cuándo|(?:qué|que) (?:año|fecha|día)|quand",
    "name": r"who(?:m|se)?|(?:what|which) (?:person|company|team|country|city|name|author)|where|"
    r"wer|wem|wen|wo|quién(?:es)?|dónde|qui|où",
    "reason": r"why|for what reason|warum|weshalb|wieso|por qué|pourquoi",
    "money": r"how much\b.*\b(?:costs?|pay|paid|charged?|earn|rent|fee)|costs?|price|fees?|kostet|kosten|preis|miete|"
    r"cuánto (?:cuesta|paga|vale)|precio",
    "mass": r"how heavy|weighs?|what (?:weight|mass)|wie schwer|wiegt|cuánto pesa",
    "telephone": r"(?:tele)?phone number|telephone|telefonnummer|(?:número de )?teléfono",
    "temperature": r"(?:what|which) temperature|how (?:hot|cold|warm)|wie (?:heiß|kalt|warm)|qué temperatura",
}
SPECIAL = ("money", "mass", "telephone", "temperature")
"""kinds of number: a question for one of them is not answered by another"""
_ASKED = {kind: re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE) for kind, pattern in _ASKS.items()}
_NUMBER = re.compile(
    r"\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|hundred|thousand|"
    r"million|billion|half|third|quarter|zwei|drei|vier|fünf|hundert|tausend|dos|tres|cuatro|cinco|cien|mil)\b",
    re.IGNORECASE,
)
_TIME = re.compile(
    r"\b\d{3,4}\b|\b\d{1,2}(?:st|nd|rd|th)? (?:century|[JFMASOND][a-z]{2,8})|\b\d{1,2}[./:]\d{1,2}\b|"
    r"\b(?:January|February|March|April|May|June|July|August|September|October|November|December|century|Monday|Tuesday|"
    r"Wednesday|Thursday|Friday|Saturday|Sunday|Januar|Februar|März|Mai|Juni|Juli|Oktober|Dezember|Jahrhundert|"
    r"enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre|octubre|noviembre|diciembre|siglo)\b",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?<=[^.!?\s] )[\"'“(]?[A-ZÀ-Þ][\w'’-]+|^\W*[A-ZÀ-Þ][\w'’-]+ (?:of |de |von )?[A-ZÀ-Þ][\w'’-]+")
_REASON = re.compile(
    r"\b(?:because|since|due|therefore|so that|in order|reason|caused?|owing|result(?:ed)?|thus|hence|to (?:avoid|"
    r"prevent|ensure|make|keep)|weil|denn|da|deshalb|wegen|um|porque|debido|ya que|para|car|parce)\b",
    re.IGNORECASE,
)
_HELD = {
    "number": _NUMBER,
    "time": _TIME,
    "reason": _REASON,
    "money": re.compile(
        r"[€$£¥]|\d[.,]\d\d\b|\b(?:euros?|dollars?|pounds?|cents?|eur|usd|gbp|chf|francs?|francos?|shillings?|pence|crowns?|"
        r"guilders?|marks?|free|million|billion|gratis|kostenlos)\b",
        re.IGNORECASE,
    ),
    "mass": re.compile(
        r"\d\s*(?:g|kg|mg|lbs?|oz|t)\b|\((?:kg|g|lb|t)\)|\b(?:gram(?:me|m)?s?|gramos?|kilo\w*|tons?|tonnes?|tonnen?|"
        r"toneladas?|pounds?|ounces?|stones?|weigh\w*|wiegt|pesa)\b",
        re.IGNORECASE,
    ),
    "telephone": re.compile(r"\d[\d /()-]{4,}\d"),
    "temperature": re.compile(r"°|\b(?:degrees?|grad|grados?)\b", re.IGNORECASE),
}
_FIGURES = re.compile(r"\d+")
NAMES = (
    "shared",
    "shared_near",
    "rarest_shared",
    "kind_present",
    "kind_absent",
    "figure_missing",
    "length",
    "fragment",
    "question",
    "first",
)


def lexical(question: str, sentences: Sequence[str], contexts: Sequence[str] | None = None) -> np.ndarray:
    """float32[n, len(NAMES)] of each sentence; a sentence's neighbours are those of the same context."""
    asked = content(question)
    held = [stems(sentence) for sentence in sentences]
    counts = Counter(term for one in held for term in one)
    idf = {term: float(np.log(1 + (len(held) - counts[term] + 0.5) / (counts[term] + 0.5))) for term in asked}
    total = sum(idf.values()) or 1.0
    rarest = max(idf, key=lambda term: (idf[term], term), default=None)
    kinds = _kinds(question)
    figures = set(_FIGURES.findall(question))
    found = np.zeros((len(sentences), len(NAMES)), dtype=np.float32)
    for n, sentence in enumerate(sentences):
        first = n == 0 or contexts is None or contexts[n] != contexts[n - 1]
        near = held[n] if first else held[n] | held[n - 1]
        present = [holds(kind, sentence, question) for kind in kinds]
        found[n] = (
            sum(weight for term, weight in idf.items() if term in held[n]) / total,
            sum(weight for term, weight in idf.items() if term in near) / total,
            float(rarest is not None and rarest in near),
            float(bool(present) and any(present)),
            float(bool(present) and not any(present)),
            float(not figures.issubset(_figures(sentence if contexts is None else contexts[n]))),
            float(np.log1p(len(held[n]))),
            float(len(held[n]) < 4),
            float(sentence.rstrip("\"'”’) ").endswith(("?", "？"))),
            float(first),
        )
    return found


@lru_cache(maxsize=8192)
def stems(text: str) -> frozenset[str]:
    """The words of a text by their first letters."""
    return frozenset(map(stem, terms(text)))


def stem(term: str) -> str:
    return (term.removesuffix("s") if len(term) > 3 else term)[:STEM]


def content(question: str) -> frozenset[str]:
    """Stems of the words of a question that say what it is about; all of them where there is no such word."""
    asked = terms(question)
    return frozenset(stem(term) for term in asked if term not in COMMON) or frozenset(map(stem, asked))


def holds(kind: str, sentence: str, question: str) -> bool:
    """Whether a sentence has what a question of a kind asks for, and the question not."""
    if kind == "name":
        return any(name[0] not in question for name in _NAME.finditer(sentence))
    return bool(_HELD[kind].search(sentence))


def _kinds(question: str) -> list[str]:
    """What it asks for, by the narrowest of its kinds."""
    kinds = [kind for kind, pattern in _ASKED.items() if pattern.search(question)]
    return [kind for kind in kinds if kind in SPECIAL] or kinds


@lru_cache(maxsize=1024)
def _figures(text: str) -> frozenset[str]:
    return frozenset(_FIGURES.findall(text))
