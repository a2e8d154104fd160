"""The scores of a search do not tell which words are in other people's documents, nor how long they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from retrieval.index.snapshot import Snapshot
from retrieval.library import Library
from retrieval.types import Mode, Upload

from ..retrieval.conftest import WordEmbedder

BOBS = [
    "the merger of the harbour company was signed by two people in spring",
    "lanterns and marmalade were sold in the market beside the harbour",
]
WITH = "the merger was signed in the evening and the merger was secret to all"
WITHOUT = (
    "the letter was signed in the evening and the letter, which was long and dull to read, was secret to all of us"
)
QUERIES = ("merger", "secret merger", "harbour lanterns", "letter in the evening")


@pytest.fixture
def found(tmp_path: Path) -> Iterator[Callable[..., dict[str, list[float]]]]:
    """What Bob is told, in a library where Alice has a text, too; the journal alone, or a generation."""
    opened: list[Library] = []

    def search(alices: str, built: bool, mode: Mode) -> dict[str, list[float]]:
        library = Library.open(tmp_path / str(len(opened)), embedder=WordEmbedder())
        opened.append(library)
        library.ingest([Upload(f"{n}.txt", text.encode()) for n, text in enumerate(BOBS)], owner="bob")
        if built:
            library.build_index()
        library.ingest([Upload(f"{n}.txt", f"{alices} {n}".encode()) for n in range(9)], owner="alice")
        if built:
            library.build_index()
        asked = {query: library.search(query, owner="bob", mode=mode).hits for query in QUERIES}
        retriever = library.retriever(owner="bob", mode=mode)
        for query, hits in asked.items():
            assert {hit.name for hit in hits} <= {"0.txt", "1.txt"}
            [ids] = retriever.search([retriever.query(query)], 10)
            assert ids.tolist() == [hit.chunk_id for hit in hits]
            assert retriever.score(retriever.query(query), ids).tolist() == [hit.score for hit in hits]
        return {query: [hit.score for hit in hits] for query, hits in asked.items()}

    yield search
    for library in opened:
        library.close()


@pytest.mark.parametrize("built", [False, True], ids=["journal", "generation"])
@pytest.mark.parametrize("mode", ["sparse", "hybrid", "dense"])
def test_they_are_the_same_whatever_words_others_have(
    found: Callable[..., dict[str, list[float]]], mode: Mode, built: bool
) -> None:
    with_word = found(WITH, built, mode)
    assert with_word == found(WITHOUT, built, mode)
    assert with_word["merger"]


def test_they_would_tell(found: Callable[..., dict[str, list[float]]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Weighed by everybody's passages the scores differ: what is compared above can be told apart."""
    monkeypatch.setattr(Snapshot, "_is_whole", lambda self, corpus: True)
    for built in (False, True):
        assert found(WITH, built, "sparse") != found(WITHOUT, built, "sparse")
