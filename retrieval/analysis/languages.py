"""Which language a text is in, by its stop words; enough to choose a stemmer, and cheap enough for every chunk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from retrieval.analysis.folding import fold
from retrieval.analysis.stop_words import STOP_WORDS
from retrieval.analysis.words import words

UNKNOWN = ""
"""of a text without a stop word, such as a table of numbers: it is not stemmed"""

_ORDER = list(STOP_WORDS)
_VOTERS: dict[str, list[str]] = {}
for _language, _words in STOP_WORDS.items():
    for _word in _words:
        _VOTERS.setdefault(_word, []).append(_language)


def votes(words: Iterable[str]) -> Counter[str]:
    """language → how many of the (folded) words are stop words of it."""
    found: Counter[str] = Counter()
    for word, count in Counter(filter(_VOTERS.__contains__, words)).items():
        for language in _VOTERS[word]:
            found[language] += count
    return found


def likeliest(found: Mapping[str, int], surroundings: Mapping[str, int], trust: float) -> str:
    """The language with most votes, where what surrounds the text (its document, the collection) has ``trust`` votes.

    Ties go in the order of ``STOP_WORDS``.
    """
    total = sum(surroundings.values())
    languages = {language for language in (*found, *surroundings) if language != UNKNOWN}
    if not languages:
        return UNKNOWN

    def weight(language: str) -> float:
        return found.get(language, 0) + (trust * surroundings.get(language, 0) / total if total else 0.0)

    return min(languages, key=lambda language: (-weight(language), _ORDER.index(language)))


def is_english(text: str) -> bool:
    """Whether its stop words are English ones, or it has none and is written in ASCII."""
    found = votes(words(fold(text)))
    language = likeliest(found, {}, 0)
    return language == "en" or (language == UNKNOWN and text.isascii())
