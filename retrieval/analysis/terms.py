"""Documents and queries as the terms that BM25 counts.

A term is a stem and its language. A chunk is analysed in its own language; a query in every language that the library
has, so that each chunk is asked in the language that it is in, and a name is found in all of them. Chunks without a
language (tables of numbers, code) are not stemmed.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import PurePosixPath

import Stemmer

from retrieval.analysis.folding import fold, unaccented
from retrieval.analysis.languages import UNKNOWN, likeliest, votes
from retrieval.analysis.stop_words import STOP_WORDS
from retrieval.analysis.words import words

ANALYSIS = f"folio-1 snowball-{Stemmer.version()}"
"""An index of another analysis has other terms. The number moves with whatever changes a term."""

HEADING = 2
"""times that a heading above a chunk counts as if it stood in it"""
DOCUMENT_TRUST = 5.0
"""votes of its document on the language of a chunk"""
COLLECTION_TRUST = 1.5
"""votes of the library on the language of a query: more than one word's, fewer than two"""

_ALGORITHMS = {
    "ar": "arabic", "ca": "catalan", "cs": "czech", "da": "danish", "de": "german", "el": "greek", "en": "english",
    "es": "spanish", "fi": "finnish", "fr": "french", "hi": "hindi", "hu": "hungarian", "id": "indonesian",
    "it": "italian", "nl": "dutch", "no": "norwegian", "pl": "polish", "pt": "portuguese", "ro": "romanian",
    "ru": "russian", "sv": "swedish", "tr": "turkish",
}  # fmt: skip
"""Snowball's"""
MARK = "\x1f"
_REMEMBERED = 200_000


class _Terms(dict[str, str]):
    """Folded word → its term in one language, remembered: most words of a text were met before."""

    def __init__(self, language: str) -> None:
        super().__init__()
        self._suffix = f"{MARK}{language}" if language else ""
        self._stemmer = Stemmer.Stemmer(_ALGORITHMS[language]) if language in _ALGORITHMS else None
        self._lock = threading.Lock()  # a stemmer is of one thread at a time

    def __missing__(self, word: str) -> str:
        with self._lock:
            stem = self._stemmer.stemWord(word) if self._stemmer is not None else word
            if len(self) >= _REMEMBERED:
                self.clear()
            term = self[word] = unaccented(stem) + self._suffix
        return term


@cache
def _terms_of(language: str) -> _Terms:
    return _Terms(language)


def language_of(term: str) -> str:
    return term.partition(MARK)[2]


def terms(text: str, language: str = UNKNOWN) -> list[str]:
    """In order, stop words included."""
    return list(map(_terms_of(language).__getitem__, words(fold(text))))


def chunk_terms(chunks: Sequence[tuple[str, str, str]]) -> list[tuple[str, list[str]]]:
    """(language, terms) of each chunk of one document: the terms of its text, of its headings and of its file's name.

    chunks: (name of the file, context, text). A heading counts ``HEADING`` times, as BM25F's weights would have it.
    """
    split = [words(fold(text)) for _, _, text in chunks]
    each = [votes(found) for found in split]
    whole = sum(each, Counter())
    analysed = []
    for (name, context, _), found, own in zip(chunks, split, each, strict=True):
        language = likeliest(own, whole, DOCUMENT_TRUST)
        of = _terms_of(language)
        headings = [of[word] for word in words(fold(context))] if context else []
        analysed.append((language, [of[word] for word in found] + HEADING * headings + _name_terms(name, language)))
    return analysed


@lru_cache(4096)
def _name_terms(name: str, language: str) -> list[str]:
    return terms(name.removesuffix(PurePosixPath(name).suffix), language)


def query_terms(text: str, languages: Mapping[str, int]) -> list[str]:
    """Of a query to a library that has so many chunks in each of ``languages``.

    Without the stop words of the language that it is in, unless it has no other words.
    """
    found = words(fold(text))
    stop_words = STOP_WORDS.get(likeliest(votes(found), languages, COLLECTION_TRUST), frozenset())
    content = [word for word in found if word not in stop_words] or found
    return [_terms_of(language)[word] for language in languages for word in content]
