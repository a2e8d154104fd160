"""What of the passages is read for a question: the sentences that share most with it, each with the one before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def likeliest(sentences: Sequence[str], contexts: Sequence[str], logits: np.ndarray, room: int) -> list[int]:
    """Numbers of the sentences to read, in order: the best, with their predecessors, as long as there is room.

    Args:
        contexts: the passage in which each sentence stands. logits: float[n], how likely each is by its words.
        room: characters of them all; the best is read whatever its length.
    """
    kept: set[int] = set()
    for best in np.argsort(-logits, kind="stable").tolist():
        said = {n for n in (best - 1, best) if n >= 0 and contexts[n] == contexts[best]} - kept
        room -= sum(len(sentences[n]) for n in said)
        if kept and room < 0:
            break
        kept |= said
    return sorted(kept)


def cut(sentences: Sequence[str], contexts: Sequence[str], kept: Sequence[int]) -> list[str]:
    """The passage of each sentence kept, less the sentences that are not; what stands above the first stays."""
    left = set(kept)
    texts: dict[int, str] = {}
    for first, last in runs(contexts):
        read = left.intersection(range(first, last))
        text = contexts[first]
        if 0 < len(read) < last - first:
            found = pieces(text, sentences[first:last])
            beside = [n for _, n in found]
            stays = [
                first + n in read if n is not None else before is None or first + before in read
                for n, before in zip(beside, [None, *beside], strict=False)
            ]
            text = " ".join(piece.strip() for (piece, _), stay in zip(found, stays, strict=True) if stay)
        texts |= dict.fromkeys(read, text)
    return [texts[n] for n in kept]


def runs(contexts: Sequence[str]) -> list[tuple[int, int]]:
    """Runs of sentences of one context, as ranges of their numbers."""
    starts = [n for n, context in enumerate(contexts) if n == 0 or context != contexts[n - 1]]
    return list(zip(starts, [*starts[1:], len(contexts)], strict=True))


def pieces(context: str, sentences: Sequence[str]) -> list[tuple[str, int | None]]:
    """A passage in order: its sentences with their numbers, and what stands between them."""
    found: list[tuple[str, int | None]] = []
    at = 0
    for n, sentence in enumerate(sentences):
        start = context.find(sentence, at)
        if start > at and context[at:start].strip():
            found.append((context[at:start], None))
        found.append((sentence, n))
        at = max(at, start + len(sentence)) if start >= 0 else at
    return [*found, (context[at:], None)] if context[at:].strip() and at else found
