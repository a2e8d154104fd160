"""Pages that are pictures are read where the extra ``ocr`` is installed, and named in the notes where it is not."""

from __future__ import annotations

import io
from collections.abc import Iterator

import make_files
import pypdfium2 as pdfium
import pytest

from retrieval.errors import EmptyFile
from retrieval.parsing import Limits, parse
from retrieval.parsing.pdf import ocr
from retrieval.parsing.pdf.boxes import boxes
from retrieval.parsing.places import place_of
from retrieval.parsing.sandbox import Sandbox

installed = pytest.mark.skipif(not ocr.available(), reason="the extra ocr is not installed")
LEFT = [
    "The keeper of the northern gate was",
    "paid forty litres of oil in 1890, and",
    "he lived in the tower by the sea.",
]
RIGHT = ["The southern gate had no keeper, for", "nobody came that way in the winter", "months of those long years."]
PRINTED = make_files.placed_pdf(
    [
        [(72, 740, 18, "Gates of the harbour")]
        + [(60, 700 - 16 * n, 11, line) for n, line in enumerate(LEFT)]
        + [(330, 700 - 16 * n, 11, line) for n, line in enumerate(RIGHT)]
    ]
)


def scanned(*pages: bytes, turned: int = 0) -> bytes:
    """A PDF of pictures of the first pages of others."""
    images = []
    for page in pages:
        with pdfium.PdfDocument(page) as document:
            images.append(document[0].render(scale=150 / 72).to_pil().convert("RGB").rotate(turned, expand=True))
    buffer = io.BytesIO()
    images[0].save(buffer, "PDF", resolution=150, save_all=True, append_images=images[1:])
    return buffer.getvalue()


def mixed() -> bytes:
    """A printed page, a picture of one, and another printed page."""
    with pdfium.PdfDocument.new() as whole:
        for part in (make_files.pdf(["First page."]), scanned(PRINTED), make_files.pdf(["Last page."])):
            with pdfium.PdfDocument(part) as document:
                whole.import_pages(document)
        buffer = io.BytesIO()
        whole.save(buffer)
    return buffer.getvalue()


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "available", lambda: False)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    opened = Sandbox(Limits())
    yield opened
    opened.close()


@installed
def test_a_picture_is_read_in_the_sandbox_and_said_to_be(sandbox: Sandbox) -> None:
    parsed = sandbox.parse(mixed(), "a.pdf")
    assert [parsed.text[page.start : page.end].strip() for page in parsed.pages] == [
        "First page.",
        "\n".join(["Gates of the harbour", "", *LEFT, *RIGHT]),
        "Last page.",
    ]
    assert parsed.notes == ["page 2: read from its picture by OCR; letters may be wrong"]
    assert not parsed.partial
    at = parsed.text.index("forty litres")
    assert place_of(parsed.places, parsed.pages, at, at + 12) == "page 2, read by OCR"
    assert place_of(parsed.places, parsed.pages, 0, 5) == "page 1"


@installed
@pytest.mark.parametrize("turned", [0, 90])
def test_a_word_that_was_recognised_has_a_box_where_it_is_printed(turned: int) -> None:
    data = scanned(PRINTED, turned=turned)
    if turned:
        with pdfium.PdfDocument(data) as document:
            document[0].set_rotation(turned)
            buffer = io.BytesIO()
            document.save(buffer)
        data = buffer.getvalue()
    parsed = parse(data, "a.pdf")
    start = parsed.text.index(LEFT[1])
    (box,) = boxes(data, "a.pdf", parsed.pages, parsed.text, start, start + 5)
    assert abs(box.left - 60) < 6
    assert box.bottom - 4 < 684 < box.top + 4
    assert box.top - box.bottom < 24


@installed
def test_pages_for_which_no_time_is_left_are_noted() -> None:
    parsed = parse(mixed(), "a.pdf", Limits(ocr_seconds=0))
    assert parsed.notes == [
        "page 2 is a picture (a scan?) in which no text was read",
        "page 2: no time was left for OCR; split the file",
    ]
    assert parsed.partial


@installed
def test_a_failure_of_recognition_costs_its_page_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(page: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(ocr, "_engine", lambda: fails)
    parsed = parse(mixed(), "a.pdf")
    assert "First page." in parsed.text
    assert parsed.notes[-1] == "page 2: OCR failed (RuntimeError: no memory)"


def test_without_it_the_notes_say_how_to_get_it(absent: None) -> None:
    parsed = parse(mixed(), "a.pdf")
    assert parsed.text.split() == ["First", "page.", "Last", "page."]
    assert "page 2 is a picture (a scan?)" in parsed.notes[0]
    assert "extra “ocr”" in parsed.notes[0]
    assert parsed.partial
    with pytest.raises(EmptyFile, match="extra “ocr”"):
        parse(scanned(PRINTED), "a.pdf")
