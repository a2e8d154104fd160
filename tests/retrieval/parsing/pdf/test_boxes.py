"""Boxes around a span of a PDF, and its pages as images."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from make_files import encrypted_pdf, pdf
from PIL import Image

from retrieval.errors import DamagedFile, EncryptedFile, NotFound
from retrieval.library import Library
from retrieval.parsing import parse
from retrieval.parsing.pdf.boxes import HIGHEST_IMAGE, boxes, page_image
from retrieval.types import Box, Page, Upload


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


def ink(image: bytes) -> tuple[int, int, int, int]:
    """left, upper, right, lower of what is printed on a page."""
    found = Image.open(io.BytesIO(image)).convert("L").point(lambda value: 255 * (value < 128)).getbbox()
    assert found is not None
    return found


@pytest.mark.parametrize("page", [b"", b"/Rotate 90 ", b"/Rotate 180 ", b"/Rotate 270 ", b"/CropBox [50 400 400 780] "])
def test_boxes_lie_on_the_ink_however_the_page_is_turned_and_cropped(page: bytes) -> None:
    data = pdf(["Only these words are printed."]).replace(b"/Type /Page ", b"/Type /Page " + page)
    parsed = parse(data, "t.pdf")
    [box] = boxes(data, "t.pdf", parsed.pages, parsed.text, 0, len(parsed.text))
    left, upper, right, lower = ink(page_image(data, "t.pdf", 1, round(2 * box.page_width)))
    around = [2 * box.left, 2 * (box.page_height - box.top), 2 * box.right, 2 * (box.page_height - box.bottom)]
    assert around == pytest.approx([left, upper, right, lower], abs=8)


def test_an_image_is_never_too_high() -> None:
    data = pdf(["A ribbon."]).replace(b"[0 0 612 792]", b"[0 0 100 14000]")
    assert Image.open(io.BytesIO(page_image(data, "r.pdf", 1, 2000))).height <= HIGHEST_IMAGE


def test_the_library_shows_pages_and_boxes_from_the_sandbox(
    tmp_path: Path, open_library: Callable[..., Library], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrieval.parsing.pdf.boxes.open_pdf", None)  # here: the worker has its own
    with open_library(tmp_path / "home") as library:
        both = library.ingest([Upload("a.pdf", pdf(["First page.", "Second page."])), Upload("t.txt", b"No page.")])
        document, plain = (str(result.id) for result in both)
        start = library.text(document).index("Second")
        [box] = library.boxes(document, start, start + 6)
        assert isinstance(box, Box)
        assert (box.page, box.page_width) == (2, 612.0)
        assert library.boxes(plain, 0, 2) == []
        assert Image.open(io.BytesIO(library.page_image(document, 2, width=306))).size == (306, 396)
        for number in (0, 3):
            with pytest.raises(NotFound, match=f"no page {number}; it has 2"):
                library.page_image(document, number)
        with pytest.raises(NotFound, match="no PDF"):
            library.page_image(plain, 1)
        with pytest.raises(NotFound):
            library.page_image(document, 1, "somebody")
        with pytest.raises(NotFound):
            library.boxes(document, 0, 1, "somebody")


def test_what_cannot_be_opened_is_said() -> None:
    with pytest.raises(EncryptedFile):
        page_image(encrypted_pdf(), "e.pdf", 1, 500)
    with pytest.raises(DamagedFile):
        page_image(b"%PDF-1.4 nothing", "d.pdf", 1, 500)
