"""The page of a full shelf: documents found, ordered and grouped; refusals with their proof; receipts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

BRIDGE = b"The bridge at Hampton was built by Ada Miller in 1862. It has seven arches of grey stone.\n"


def names(folio: Any) -> list[str]:
    return folio.page.locator("#document-list .document-name").all_text_contents()


def test_documents_are_found_ordered_and_grouped(folio: Any) -> None:
    page = folio.page
    for number in (10, 2):
        folio.upload(f"note {number}.txt", f"Note number {number} of the parish.\n".encode())
    page.fill("#into", "letters")
    folio.upload("an apple.txt", b"An apple a day.\n")
    assert names(folio) == ["an apple.txt", "note 2.txt", "note 10.txt"]
    page.select_option("#find-order", "newest")
    expect(page.locator("#document-list .document-name").first).to_have_text("an apple.txt")
    assert names(folio) == ["an apple.txt", "note 2.txt", "note 10.txt"][:1] + ["note 2.txt", "note 10.txt"]
    page.fill("#find", "NOTE")
    expect(page.locator("#document-list .document")).to_have_count(2)
    expect(page.locator("#scope option")).to_have_count(6), "which is asked of is not narrowed"
    page.fill("#find", "nothing is called so")
    expect(page.locator("#documents-empty")).to_have_text("No document is called so.")
    page.fill("#find", "")
    expect(page.locator("#document-list .document")).to_have_count(3)
    page.select_option("#find-in", "letters")
    expect(page.locator("#document-list .document")).to_have_count(1)
    page.reload()
    expect(page.locator("#document-list .document")).to_have_count(3)
    expect(page.locator("#find-order")).to_have_value("newest"), "the order is remembered"


def test_documents_are_grouped_by_folder(folio: Any, tmp_path: Path) -> None:
    page = folio.page
    for name in ("letters/june.txt", "letters/july.txt", "readme.txt"):
        folio.upload(name, f"This is {name}.\n".encode())
    stored = [one["name"] for one in folio.service.json("/v1/documents")["documents"]]
    if not any("/" in name for name in stored):
        pytest.skip("a browser sends no folders")
    page.select_option("#find-order", "folder")
    expect(page.locator("#document-list .folder")).to_have_text(["Without a folder", "letters"])


def test_a_refusal_shows_what_was_looked_at_and_searches_wider(folio: Any) -> None:
    page = folio.page
    folio.upload("bridge.txt", BRIDGE)
    page.check("#modes [value=retrieval]")
    folio.ask("What does a submarine cost in Lisbon?")
    proof = page.locator(".proof")
    expect(proof).to_contain_text("Searched for “What does a submarine cost in Lisbon?”: 1 passage")
    expect(proof.locator("small")).to_contain_text("is needed")
    proof.locator("li button").first.click()
    assert "Hampton" in folio.highlighted()
    page.get_by_role("button", name="Search wider").click()
    folio.finished()
    assert folio.turns[-1]["request"]["wider"]
    expect(page.locator(".turn")).to_have_count(1), "in the place of the first"
    expect(page.get_by_role("button", name="Search wider")).to_have_count(0)


def test_an_answer_has_a_receipt_that_can_be_verified_and_kept(folio: Any) -> None:
    page = folio.page
    folio.upload("bridge.txt", BRIDGE)
    folio.ask("Who built the bridge at Hampton?")
    page.get_by_role("button", name="Verify").click()
    expect(page.locator(".note")).to_contain_text("Receipt: Genuine; all", timeout=30_000)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Receipt", exact=True).click()
    receipt = json.loads(Path(saved.value.path()).read_text())
    assert receipt == folio.turns[-1]["receipt"]
    assert receipt["format"] == "folio-receipt-1"
