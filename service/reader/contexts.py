"""The text in which each sentence is read before one is chosen.

That of a chunk which a search found is the chunk, under what stands above it: as it is read to rerank, so that it is
read once. Of a document that is given whole, it is as much of the neighbourhood as a chunk has.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from service.answering.passages import Passage
from service.reader.sentences import Sentence

READ_CHARS = 900
"""of a longer passage that are read together"""
CHUNK_CHARS = 1500
"""Longer passages are no chunks."""


def contexts(sentences: Sequence[tuple[Passage, Sentence]], found: Sequence[Passage]) -> list[str]:
    """One for each sentence, the same text for those that are read together.

    Args:
        sentences: with the passage in which each stands, in order.
        found: the passages before overlapping and touching ones were joined.
    """
    homes = [_home(passage, passage.start + sentence.start, found) for passage, sentence in sentences]
    texts: list[str] = []
    for _, group in groupby(range(len(homes)), key=lambda n: id(homes[n])):
        numbers = list(group)
        home = homes[numbers[0]]
        if len(home.text) <= CHUNK_CHARS:
            texts += [" ".join(home.shown.split())] * len(numbers)
        else:
            texts += _parted([sentences[n][1].words for n in numbers])
    return texts


def _home(passage: Passage, at: int, found: Sequence[Passage]) -> Passage:
    """The passage that was found, of the document and over the character."""
    return next((one for one in found if one.document == passage.document and one.start <= at < one.end), passage)


def _parted(sentences: Sequence[str]) -> list[str]:
    texts: list[str] = []
    part: list[str] = []
    for sentence in sentences:
        if part and sum(map(len, part)) + len(sentence) > READ_CHARS:
            texts += [" ".join(part)] * len(part)
            part = []
        part.append(sentence)
    return texts + [" ".join(part)] * len(part)
