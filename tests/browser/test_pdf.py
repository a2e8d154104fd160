"""Citations of a PDF open its page as an image, with the cited lines marked."""

from __future__ import annotations

import io
import urllib.parse
from typing import Any

import pytest
from make_files import pdf
from PIL import Image
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

LINES = [
    "The lighthouse at Penmarch was built in 1897.",
    "Its lamp can be seen from thirty miles away.",
    "The keeper of the lighthouse is Madeleine Le Goff.",
    "She paints the gallery white every second spring.",
]
FILLER = ["Waves break upon the rocks below the tower."] * 30  # so that the passage stands low on its page
PAGES = ["The harbour of Kerity lies to the south.\nFishing boats leave it at dawn.", "\n".join([*FILLER, *LINES])]
QUESTION = "Who is the keeper of the lighthouse?"


def test_a_citation_of_a_pdf_opens_its_page_with_the_lines_marked(folio: Any) -> None:
    document = folio.upload("lighthouse.pdf", pdf(PAGES), "application/pdf")
    folio.ask(QUESTION)
    page = folio.page
    expect(page.locator(".chip").first).to_have_attribute("data-verified", "true")
    page.locator(".chip").first.click()
    sheet = page.locator(".sheet")
    expect(sheet).to_have_attribute("data-page", "2")
    expect(sheet.locator("figcaption")).to_have_text("Page 2")
    citation = folio.turns[-1]["citations"][0]
    span = urllib.parse.urlencode({"start": citation["start"], "end": citation["end"]})
    boxes = folio.service.json(f"/v1/documents/{document}/boxes?{span}")["boxes"]
    assert boxes == citation["boxes"]
    image = sheet.locator("img").bounding_box()
    marks = [mark.bounding_box() for mark in sheet.locator(".box").all()]
    assert len(marks) == len(boxes) > 0
    for mark, box in zip(marks, boxes, strict=True):
        scale = image["width"] / box["page_width"]
        assert mark["x"] - image["x"] == pytest.approx(box["left"] * scale, abs=3)
        assert mark["y"] - image["y"] == pytest.approx((box["page_height"] - box["top"]) * scale, abs=3)
        assert mark["width"] == pytest.approx((box["right"] - box["left"]) * scale, abs=3)
    expect(sheet.locator(".box").first).to_be_in_viewport()
    # the mark lies on ink, and nothing is printed in a strip of the same size further down the page
    drawn = Image.open(io.BytesIO(folio.service.get(f"/v1/documents/{document}/pages/2/image?width=1224"))).convert("L")
    assert drawn.width == 1224
    box = boxes[0]
    corners = [2 * box["left"], 2 * (792 - box["top"]), 2 * box["right"], 2 * (792 - box["bottom"])]
    assert min(drawn.crop(corners).getdata()) < 100
    assert min(drawn.crop([corners[0], corners[1] + 200, corners[2], corners[3] + 200]).getdata()) == 255


def test_the_page_and_the_text_say_the_same(folio: Any) -> None:
    folio.upload("lighthouse.pdf", pdf(PAGES), "application/pdf")
    folio.ask(QUESTION)
    folio.page.locator(".chip").first.click()
    expect(folio.page.locator(".sheet .box").first).to_be_visible()
    folio.page.get_by_role("button", name="Text", exact=True).click()
    assert folio.highlighted() == folio.turns[-1]["citations"][0]["cited_text"]
    folio.page.get_by_role("button", name="Page", exact=True).click()
    expect(folio.page.locator(".sheet .box").first).to_be_visible()


def test_a_new_version_is_not_marked_with_the_boxes_of_the_old(folio: Any) -> None:
    folio.upload("lighthouse.pdf", pdf(PAGES), "application/pdf")
    folio.ask(QUESTION)
    folio.page.set_input_files(
        "#file", {"name": "lighthouse.pdf", "mimeType": "application/pdf", "buffer": pdf([PAGES[0], "Nobody."])}
    )
    facts = folio.page.locator(".document[data-kind='ready'] .document-facts")
    expect(facts).to_contain_text("version 2", timeout=60_000)
    folio.page.locator(".chip").first.click()
    expect(folio.page.locator("#source-facts .badge")).to_have_text("not verified")
    expect(folio.page.locator(".sheet")).to_have_count(0)


def test_pages_are_chosen_from_small_ones_and_read_at_any_size(folio: Any) -> None:
    """By mouse and by keyboard."""
    page = folio.page
    folio.upload("lighthouse.pdf", pdf([*PAGES, "The quay is new.", "The end."]), "application/pdf")
    page.locator(".document-open").click()
    page.get_by_role("button", name="Page", exact=True).click()
    sheet, strip = page.locator(".sheet"), page.get_by_role("navigation", name="Pages")
    expect(sheet).to_have_attribute("data-page", "1")
    expect(strip.locator("img")).to_have_count(4)
    strip.get_by_role("button", name="Page 3").click()
    expect(sheet).to_have_attribute("data-page", "3")
    expect(strip.locator("[aria-current=page]")).to_have_attribute("data-page", "3")
    page.keyboard.press("ArrowRight")
    expect(sheet).to_have_attribute("data-page", "4")
    page.keyboard.press("Home")
    expect(sheet).to_have_attribute("data-page", "1")
    expect(strip.get_by_role("button", name="Page 1", exact=True)).to_be_focused()
    assert strip.locator("[tabindex='0']").count() == 1, "one stop of Tab"

    width = sheet.locator(".paper").bounding_box()["width"]
    page.keyboard.press("+")
    page.get_by_role("button", name="Larger").click()
    expect(page.get_by_label("Size")).to_have_text("150%")
    expect(page.locator(".sheet img")).to_have_js_property("naturalWidth", 2000)
    assert sheet.locator(".paper").bounding_box()["width"] == pytest.approx(1.5 * width, abs=1)
    assert folio.barriers() == []
    page.keyboard.press("-")
    expect(page.get_by_label("Size")).to_have_text("125%")
    page.keyboard.press("0")
    assert sheet.locator(".paper").bounding_box()["width"] == pytest.approx(width, abs=1)
    page.get_by_role("button", name="Smaller").click()
    assert sheet.locator(".paper").bounding_box()["width"] == pytest.approx(0.75 * width, abs=1)


def test_marks_stay_on_their_lines_at_any_size(folio: Any) -> None:
    page = folio.page
    folio.upload("lighthouse.pdf", pdf(PAGES), "application/pdf")
    folio.ask(QUESTION)
    page.locator(".chip").first.click()
    [box] = folio.turns[-1]["citations"][0]["boxes"]
    page.get_by_role("button", name="Larger").click()
    expect(page.locator(".sheet img")).to_have_js_property("naturalWidth", 2000)
    image, mark = (page.locator(f".sheet {one}").bounding_box() for one in ("img", ".box"))
    scale = image["width"] / box["page_width"]
    assert mark["x"] - image["x"] == pytest.approx(box["left"] * scale, abs=3)
    assert mark["width"] == pytest.approx((box["right"] - box["left"]) * scale, abs=3)
    page.get_by_role("navigation", name="Pages").get_by_role("button", name="Page 1").click()
    expect(page.locator(".sheet")).to_have_attribute("data-page", "1")
    expect(page.locator(".sheet .box")).to_have_count(0)
