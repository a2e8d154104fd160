"""The pictures of the documentation, taken from the real page. With FOLIO_SCREENSHOTS=docs/images they are kept."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pypdfium2 as pdfium
import pytest
from PIL import Image
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = [
    "01-what-long-context-costs.md",
    "02-paged-kv.md",
    "03-sparse-prefill.md",
    "04-streaming-heads-and-page-selection.md",
]
QUESTION = "What is a page of KV?"
BOOK, PAGES = "introduction_to_mathematics.pdf", [18, 19, 20, 21]
BOOK_QUESTION = "Can the conclusion of an argument be more certain than the assumptions?"
LIMIT = 200_000


@pytest.fixture
def keep(tmp_path: Path) -> Any:
    """Stores a picture of a page under a name, reduced to 256 colours; it must not be blank, nor large."""
    folder = Path(os.environ.get("FOLIO_SCREENSHOTS", tmp_path))

    def store(page: Any, name: str) -> None:
        page.evaluate("document.fonts.ready")
        page.wait_for_timeout(250)
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        assert len(set(picture.resize((80, 60)).getdata())) > 16
        folder.mkdir(parents=True, exist_ok=True)
        picture.quantize(256, kmeans=4, dither=Image.Dither.NONE).save(folder / name, optimize=True)
        assert (folder / name).stat().st_size < LIMIT

    return store


def test_pictures_of_the_page(service: Any, visit: Any, keep: Any) -> None:
    service.delete_all()
    folio = visit(service)
    page = folio.page
    for name in CHAPTERS:
        folio.upload(name, (ROOT / "docs" / "handbook" / name).read_bytes())
    expect(page.locator("#suggestions button").first).to_be_visible()
    keep(page, "start.png")
    page.check("#modes [value=retrieval]")
    folio.ask(QUESTION)
    page.locator(".chip").first.click()
    assert folio.highlighted()
    keep(page, "answer.png")
    if page.locator("#colours").is_visible():
        page.click("#colours")
        keep(page, "draft-sources.png")
        page.click("#colours")
    page.emulate_media(color_scheme="dark")
    keep(page, "dark.png")
    page.emulate_media(color_scheme="light")
    page.keyboard.press("?")
    keep(page, "shortcuts.png")
    page.keyboard.press("Escape")
    page.set_viewport_size({"width": 400, "height": 800})
    page.click(".tabs [data-show=ask]")
    keep(page, "narrow-ask.png")
    page.click(".tabs [data-show=source]")
    page.locator("#source-text mark").first.scroll_into_view_if_needed()
    keep(page, "narrow-source.png")


def test_picture_of_a_page_of_a_book(service: Any, visit: Any, keep: Any, shared: Path) -> None:
    source, part = pdfium.PdfDocument(shared / "corpus" / BOOK), pdfium.PdfDocument.new()
    part.import_pages(source, PAGES)
    data = io.BytesIO()
    part.save(data)
    service.delete_all()
    folio = visit(service)
    folio.upload(BOOK, data.getvalue(), "application/pdf")
    folio.ask(BOOK_QUESTION)
    folio.page.locator(".chip").first.click()
    expect(folio.page.locator(".sheet .box").first).to_be_in_viewport()
    keep(folio.page, "page.png")
