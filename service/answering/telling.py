"""The sentences that tell most of what a text says, chosen without a model.

A sentence is near to a text where it shares the words that the text's sentences share (their centroid: Radev, Jing,
Styś and Tam 2004); one after another is taken that is near and unlike those that are taken (maximal marginal relevance:
Carbonell and Goldstein 1998).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from retrieval.analysis.folding import fold
from retrieval.analysis.languages import likeliest, votes
from retrieval.analysis.stop_words import STOP_WORDS
from retrieval.analysis.terms import terms
from retrieval.analysis.words import words
from retrieval.parsing.sentences import units

FEWEST_TERMS, MOST_CHARS = 4, 400
"""of a sentence that can stand for others"""
NEARNESS = 0.5
"""against difference from the sentences that are taken"""
OPENING = 1.25
"""times as near is the sentence that opens a text: it says what the text is about"""

_SENTENCE = re.compile(r"(?!#|\||[-*•+]\s|\d+[.)]\s).*[.!…。！][\"'”’»)\]*_]*$", re.DOTALL)
_LEANS = re.compile(
    r"(?:its?|their|his|her|this|that|these|those|he|she|they|here|there|such|so|but|and|or|then|thus|hence|however|therefore|also|"
    r"er|sie|es|dies(?:e[rs]?)?|das|aber|und|doch|hier|él|ella|esto|este|pero|il|elle|ils|cela|mais)\b",
    re.IGNORECASE,
)
"""What a sentence begins with that says little without the one before it."""
_SPOKEN = re.compile(r"[\"“«„][^\"”»“]{30,}")

Vector = Mapping[str, float]


def telling(text: str, wanted: int) -> list[tuple[int, int]]:
    """(start, end) of at most so many sentences of a text, in its order."""
    spans = [span for span in units(text) if _stands_alone(text[slice(*span)])]
    language = likeliest(votes(words(fold(text))), {}, 0)
    counted = [Counter(_content(text[slice(*span)], language)) for span in spans]
    known = [number for number, counts in enumerate(counted) if len(counts) >= FEWEST_TERMS]
    vectors = _weighed([counted[number] for number in known])
    centroid = Counter[str]()
    for vector in vectors:
        centroid.update(vector)
    near = [_dot(vector, centroid) - 1 for vector in vectors]  # to the others
    top = max(near, default=0.0) or 1.0
    near = [value / top for value in near]
    if known and known[0] == 0:
        near[0] *= OPENING
    return sorted(spans[known[number]] for number in _marginal(vectors, near, wanted))


def _stands_alone(sentence: str) -> bool:
    """Whether it is a whole one, in the text's own voice."""
    whole = len(sentence) <= MOST_CHARS and _SENTENCE.match(sentence) and not sentence.count('"') % 2
    return bool(whole and not _LEANS.match(sentence) and not _SPOKEN.search(sentence))


def _content(sentence: str, language: str) -> list[str]:
    """Terms, without the words that every text has."""
    idle = STOP_WORDS.get(language, frozenset())
    return terms(" ".join(word for word in words(fold(sentence)) if word not in idle), language)


def _weighed(counted: Sequence[Counter[str]]) -> list[Vector]:
    """tf-idf over the sentences, each of length 1."""
    found = Counter(term for counts in counted for term in counts)
    made: list[Vector] = []
    for counts in counted:
        vector = {term: count * math.log(1 + len(counted) / found[term]) for term, count in counts.items()}
        length = math.sqrt(sum(value * value for value in vector.values()))
        made.append({term: value / length for term, value in vector.items()})
    return made


def _marginal(vectors: Sequence[Vector], near: Sequence[float], wanted: int) -> list[int]:
    """Numbers of the sentences that are taken."""
    taken: list[int] = []
    alike = [0.0] * len(vectors)
    while len(taken) < min(wanted, len(vectors)):
        left = [number for number in range(len(vectors)) if number not in taken]
        best = max(left, key=lambda number: NEARNESS * near[number] - (1 - NEARNESS) * alike[number])
        taken.append(best)
        alike = [max(known, _dot(vectors[best], vector)) for known, vector in zip(alike, vectors, strict=True)]
    return taken


def _dot(one: Vector, other: Vector) -> float:
    return sum(value * other.get(term, 0.0) for term, value in one.items())
