"""Places: from a span of stored text back to where it stands in the file."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.parsing import places as module
from retrieval.parsing.document import page_at
from retrieval.parsing.places import around, pack, place_of, unpack
from retrieval.types import Page, Place

CELLS = [
    Place(0, 4, ("Sales", "Zone EUR", "A7")),
    Place(7, 9, ("Sales", "Amount", "B7")),
    Place(10, 12, ("Costs", "Amount", "B2")),
]
PAGES = [Page(3, 0, 4), Page(4, 6, 9)]


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [
        (1, 3, "Sales, Zone EUR, A7"),
        (0, 9, "Sales, A7 to B7"),
        (8, 11, "Sales, Amount, B7 to Costs, Amount, B2"),
        (4, 7, ""),  # between two cells
        (7, 7, "Sales, Amount, B7"),  # a point
        (12, 99, ""),
    ],
)
def test_a_span_is_said_by_the_cells_it_touches(start: int, end: int, said: str) -> None:
    assert place_of(CELLS, [Page(1, 0, 12)], start, end) == said


@pytest.mark.parametrize(("start", "end", "said"), [(0, 4, "page 3"), (2, 8, "pages 3 to 4"), (6, 7, "page 4")])
def test_without_places_the_pages_are_said(start: int, end: int, said: str) -> None:
    assert place_of([], PAGES, start, end) == said


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.lists(st.text(max_size=9), max_size=3))))
def test_packing_loses_nothing(steps: list[tuple[int, int, list[str]]]) -> None:
    places, at = [], 0
    for gap, length, path in steps:
        places.append(Place(at + gap, at + gap + length, tuple(path)))
        at += gap + length
    assert unpack(pack(places)) == places


def test_a_citation_in_a_large_workbook_unpacks_what_lies_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [Place(10 * n, 10 * n + 7, ("Sales", f"A{n}")) for n in range(50_000)]
    packed, opened = pack(cells), []
    inflate = module.zlib.decompress
    monkeypatch.setattr(module.zlib, "decompress", lambda data: opened.append(1) or inflate(data))
    for start, end in ((0, 1), (9_995, 10_001), (10_000, 10_007), (123_457, 123_460), (499_990, 499_999), (7, 10)):
        assert place_of(around(packed, start, end), [], start, end) == place_of(cells, [], start, end)
    assert len(opened) <= 12


def test_places_as_earlier_releases_packed_them() -> None:
    old = zlib.compress(json.dumps([[0, 7, 3], [4, 2, 2], [list(cell.path) for cell in CELLS]]).encode())
    assert unpack(old) == around(old, 8, 9) == CELLS


def test_pages_are_not_gone_through_for_each_span() -> None:
    """10,000 pages and 30,000 passages are placed within the transaction that stores them."""

    class Pages(list[Page]):
        def __iter__(self) -> Iterator[Page]:
            raise AssertionError("all pages are looked at")

    pages = Pages([Page(n + 1, 100 * n, 100 * n + 90) for n in range(1000)])
    assert place_of([], pages, 250, 260) == "page 3"
    assert page_at(pages, 99_950) == 1000
