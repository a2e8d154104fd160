"""A library in several languages: each chunk is asked in its own, before the index is built and after."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from retrieval.library import Library
from retrieval.types import Upload

FILES = {
    "harbour-boats-2019.txt": "The boats of the harbour were painted, and the lanterns on them were lit in Paris.",
    "fluss.txt": "Die Laternen am Fluss wurden in der Nacht angezündet, und die Häuser von Paris waren nicht zu sehen.",
    "canciones.txt": "Las canciones de los marineros no se oyen en la noche, pero el río las recuerda.",
    "numbers.csv": "lanterns;17\nboats;42",
    "zh.txt": "特斯拉是一位发明家。河水在夜里上涨,船夫点亮了灯笼。",
}


def names(library: Library, query: str, mode: str = "sparse") -> Sequence[str]:
    return [hit.name for hit in library.search(query, mode=mode).hits]  # type: ignore[arg-type]


@pytest.fixture(params=["from the journal", "from the index"])
def filled(library: Library, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    if request.param == "from the journal":
        monkeypatch.setattr("retrieval.index.upkeep._try_build", lambda index: None)
    library.ingest([Upload(name, text.encode()) for name, text in FILES.items()])
    assert (library.stats().pending == 0) == (request.param == "from the index")
    return library


FOUND = {
    "Which boat was painting?": {"harbour-boats-2019.txt"},
    "boats": {"harbour-boats-2019.txt", "numbers.csv"},
    "das Haus": {"fluss.txt"},
    "die Laterne": {"fluss.txt"},
    "cancion": {"canciones.txt"},
    "PARIS": {"harbour-boats-2019.txt", "fluss.txt"},
    "灯笼": {"zh.txt"},
    "harbour": {"harbour-boats-2019.txt"},
    "la\u00adn\u200btern": {"harbour-boats-2019.txt"},
    "unheard": set(),
}


def test_words_are_found_in_the_language_of_their_document(filled: Library) -> None:
    assert {query: set(names(filled, query)) for query in FOUND} == FOUND


def test_the_index_scores_as_the_journal_did(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("retrieval.index.upkeep._try_build", lambda index: None)
        library.ingest([Upload(name, text.encode()) for name, text in FILES.items()])
    asked = [(query, mode) for query in ("lanterns of Paris", "die Nacht", "17") for mode in ("sparse", "hybrid")]
    before = [library.search(query, mode=mode).hits for query, mode in asked]  # type: ignore[arg-type]
    library.build_index()
    for (query, mode), hits in zip(asked, before, strict=True):
        after = library.search(query, mode=mode).hits  # type: ignore[arg-type]
        assert [hit.chunk_id for hit in after] == [hit.chunk_id for hit in hits]
        assert [hit.score for hit in after] == pytest.approx([hit.score for hit in hits], abs=1e-5)


def test_a_name_of_a_file_is_searched(filled: Library) -> None:
    assert names(filled, "boats 2019")[0] == "harbour-boats-2019.txt"
    assert names(filled, "numbers") == ["numbers.csv"]
