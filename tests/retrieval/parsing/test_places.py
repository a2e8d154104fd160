"""Places: from a span of stored text back to where it stands in the file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.parsing.places import pack, place_of, unpack
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
