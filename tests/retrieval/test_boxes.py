"""Boxes around a span of a PDF."""

from __future__ import annotations

from pathlib import Path

from retrieval.boxes import boxes
from retrieval.parsing import parse
from retrieval.types import Page


def test_boxes_lie_on_the_lines_that_print_the_span(shared: Path) -> None:
    data = (shared / "corpus" / "introduction_to_mathematics.pdf").read_bytes()
    parsed = parse(data, "m.pdf")
    start = parsed.text.index("no mathematical certainty whatever")
    end = parsed.text.index("quite true", start)
    found = boxes(data, "m.pdf", parsed.pages, parsed.text, start, end)
    page = next(page for page in parsed.pages if page.start <= start < page.end)
    assert {box.page for box in found} == {page.number}
    assert len(found) == parsed.text[start:end].count("\n") + 1
    assert all(
        0 < box.left < box.right < box.page_width and 0 < box.bottom < box.top < box.page_height for box in found
    )
    assert [box.top for box in found] == sorted((box.top for box in found), reverse=True)
    whole = boxes(data, "m.pdf", parsed.pages, parsed.text, page.start, page.end)
    assert min(box.left for box in whole) <= found[0].left


def test_a_span_over_two_pages_has_boxes_on_both(shared: Path) -> None:
    data = (shared / "corpus" / "introduction_to_mathematics.pdf").read_bytes()
    parsed = parse(data, "m.pdf")
    first = parsed.pages[20]
    found = boxes(data, "m.pdf", parsed.pages, parsed.text, first.end - 30, first.end + 30)
    assert {box.page for box in found} == {21, 22}


def test_no_box_rather_than_a_wrong_one(shared: Path) -> None:
    data = (shared / "corpus" / "introduction_to_mathematics.pdf").read_bytes()
    other = "not what the page says " * 10
    assert boxes(data, "m.pdf", [Page(21, 0, len(other))], other, 0, 20) == []
