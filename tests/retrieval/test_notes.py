"""What of a file was not read, and where its text stands, is kept with the document and travels with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieval.library import Library
from retrieval.parsing.document import ParsedDocument
from retrieval.types import Page, Place, Upload

TEXT = "Zone: EUR\nAmount: 1001"
PLACES = [Place(0, 9, ("Sales", "Zone", "A2")), Place(10, 22, ("Sales", "Amount", "B2"))]


@pytest.fixture
def half_read(library: Library, monkeypatch: pytest.MonkeyPatch) -> Library:
    parsed = ParsedDocument(TEXT, [Page(1, 0, len(TEXT))], "text/plain", ["page 2 was not read"], PLACES, [], 0.5)
    monkeypatch.setattr(library._sandbox, "parse", lambda *_: parsed)
    return library


def test_notes_and_places_are_stored_and_shown(half_read: Library) -> None:
    (result,) = half_read.ingest([Upload("a.txt", b"a")])
    assert (result.status, result.notes) == ("partial", ["page 2 was not read"])
    (again,) = half_read.ingest([Upload("a.txt", b"a")])
    assert (again.deduplicated, again.status, again.notes) == (True, "partial", ["page 2 was not read"])
    shown = half_read.document(result.id or "")
    assert (shown.status, shown.notes, shown.readable) == ("partial", ["page 2 was not read"], True)
    assert half_read.place_of(shown.id, 12, 14) == "Sales, Amount, B2"
    (hit,) = half_read.search("EUR").hits
    assert hit.place == "Sales, A2 to B2"
    assert half_read.verify_index().ok


def test_an_archive_carries_notes_and_places(half_read: Library, tmp_path: Path) -> None:
    half_read.ingest([Upload("a.txt", b"a")])
    half_read.export_collection(tmp_path / "all.folio")
    (copied,) = half_read.import_collection(tmp_path / "all.folio", "copy")
    assert (copied.status, copied.notes) == ("partial", ["page 2 was not read"])
    assert half_read.place_of(copied.id or "", 0, 3) == "Sales, Zone, A2"


def test_a_chunk_is_found_and_shown_with_its_context(library: Library) -> None:
    text = "# Harbour\n\n## Lamps\n\n" + "It burns forty litres of oil. " * 60 + "\n\n# Mill\n\nIt turns."
    library.ingest([Upload("a.md", text.encode())])
    hits = library.search("harbour", mode="sparse").hits
    assert len(hits) > 1
    assert {hit.context for hit in hits[1:]} <= {"Harbour › Lamps", ""}
    assert any(hit.context == "Harbour › Lamps" and "Harbour" not in hit.text for hit in hits)
