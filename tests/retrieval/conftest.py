"""Fixtures of the retrieval tests: a library with a small, fast, deterministic embedder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from retrieval.library import Library


class WordEmbedder:
    """Vectors by hashed words: texts that share words are near, and nothing has to be loaded."""

    def __init__(self, dim: int = 64, name: str = "words") -> None:
        self._dim = dim
        self._name = name

    @property
    def fingerprint(self) -> str:
        return f"{self._name}|dim={self._dim}"

    @property
    def dim(self) -> int:
        return self._dim

    def token_starts(self, text: str) -> np.ndarray:
        return np.array([found.start() for found in re.finditer(r"\w+|[^\w\s]", text)], dtype=np.int64)

    def encode_documents(self, texts: Sequence[str], advance: Callable[[int, int], None] | None = None) -> np.ndarray:
        vectors = np.stack([self._vector(text) for text in texts])
        if advance:
            advance(len(texts), len(texts))
        return vectors

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self._vector(text) for text in texts])

    def _vector(self, text: str) -> np.ndarray:
        vector = np.full(self._dim, 1e-3, dtype=np.float32)
        for word in re.findall(r"\w+", text.lower()):
            digest = hashlib.blake2b(f"{self._name}{word}".encode(), digest_size=8).digest()
            vector[int.from_bytes(digest[:4], "little") % self._dim] += 1 if digest[4] & 1 else -1
        return vector / np.linalg.norm(vector)


@pytest.fixture
def embedder() -> WordEmbedder:
    return WordEmbedder()


@pytest.fixture
def library(tmp_path: Path, embedder: WordEmbedder) -> Iterator[Library]:
    with Library.open(tmp_path / "home", embedder=embedder) as opened:
        yield opened


def sentences_about(topic: str, count: int, seed: int = 0) -> str:
    """Text of ``count`` distinct sentences on a topic, in paragraphs."""
    rng = np.random.default_rng([seed, *topic.encode()])
    words = "river stone lantern winter orchard signal copper meadow harbour ledger violin thunder".split()  # noqa: SIM905
    lines = []
    for number in range(count):
        chosen = " ".join(rng.choice(words, size=6))
        lines.append(f"The {topic} number {number} concerns {chosen}.")
    return "\n\n".join(" ".join(lines[at : at + 5]) for at in range(0, count, 5))
