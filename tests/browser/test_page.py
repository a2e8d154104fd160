"""The page: upload, ask, citations in their source, Stop, reload, errors, keys, screens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

QUESTION = "What is a page of KV?"
CONTRAST = Path(__file__).with_name("contrast.js")
FILLER = "The committee met again in the afternoon and discussed the drainage of the lower meadow at length.\n"


def test_highlight_is_the_slice_that_the_api_gives(folio: Any, chapter: bytes) -> None:
    """Offsets are code points: characters beyond the BMP, CRLF and a BOM before the passage move nothing."""
    prologue = "\U0001f4d6 \U0001d6fc\r\nA note before the chapter, with two letters that need two units each.\r\n\r\n"
    document = folio.upload("paged kv.md", prologue.encode() + chapter)
    folio.ask(QUESTION)
    chip = folio.page.locator(".chip").first
    expect(chip).to_have_attribute("data-verified", "true")
    chip.click()
    citation = folio.turns[-1]["citations"][0]
    stored = folio.service.text(document)[citation["start"] : citation["end"]]
    assert citation["document"] == document
    assert folio.highlighted() == stored == citation["cited_text"]
    mark = folio.page.locator("#source-text mark").first
    expect(mark).to_be_in_viewport()
    expect(folio.page.locator("#source-facts .badge")).to_have_text("verbatim")


def test_every_citation_opens_its_own_passage(folio: Any, chapter: bytes) -> None:
    document = folio.upload("02-paged-kv.md", chapter)
    folio.ask(QUESTION)
    folio.ask("What is a ragged batch?")
    text = folio.service.text(document)
    opened = 0
    for turn in folio.turns:
        for citation in turn["citations"]:
            folio.page.locator(".turn").nth(folio.turns.index(turn)).locator(".chip").first.click()
            assert folio.highlighted() == text[citation["start"] : citation["end"]]
            opened += 1
            break
    assert opened == 2


def test_the_answer_shows_mode_reason_and_figures(folio: Any, chapter: bytes) -> None:
    folio.upload("02-paged-kv.md", chapter)
    folio.page.check("#modes [value=retrieval]")
    folio.ask(QUESTION)
    turn = folio.turns[-1]
    expect(folio.page.locator(".mode-tag")).to_have_text(turn["mode"])
    expect(folio.page.locator(".how")).to_contain_text(turn["reason"])
    expect(folio.page.locator(".answer")).to_contain_text(" ".join(turn["text"].split())[:40])
    expect(folio.page.locator("#figure-list")).to_be_hidden()
    expect(folio.page.locator("#figures-fold")).to_contain_text(f"{turn['stats']['prompt_tokens']:,} tokens read")
    folio.page.click("#figures-fold")
    figures = folio.page.locator("#figure-list .figure")
    expect(figures.filter(has_text="Prompt")).to_contain_text(f"{turn['stats']['prompt_tokens']:,}")
    expect(figures.filter(has_text="First token")).to_contain_text("s")


def test_the_modes_offered_are_those_that_the_service_knows(folio: Any) -> None:
    schema = folio.service.json("/openapi.json")["components"]["schemas"]["AnswerRequest"]["properties"]["mode"]
    offered = folio.page.locator("#modes label:visible input")
    expect(offered).to_have_count(len(schema["enum"]))
    assert offered.evaluate_all("inputs => inputs.map(input => input.value)") == schema["enum"]


def test_stop_ends_the_answer_and_frees_the_engine(folio: Any) -> None:
    folio.upload("minutes.txt", (FILLER * 400).encode())
    folio.page.check("#modes [value=long]")
    folio.ask("Which meadow was discussed?", wait=False)
    folio.page.click("#stop")
    folio.finished()
    expect(folio.page.locator(".note")).to_contain_text("stopped")
    assert folio.turns[-1]["state"] == "stopped"
    for _ in range(100):
        metrics = folio.service.get("/metrics").decode()
        running = [line for line in metrics.splitlines() if line.startswith("folio:num_requests_running")]
        if all(line.split()[-1] in ("0", "0.0") for line in running):
            break
        folio.page.wait_for_timeout(100)
    assert running
    assert all(line.split()[-1] in ("0", "0.0") for line in running)


def test_reload_keeps_documents_answers_and_mode(folio: Any, chapter: bytes) -> None:
    folio.upload("02-paged-kv.md", chapter)
    folio.page.check("#modes [value=retrieval]")
    folio.ask(QUESTION)
    answer = folio.page.locator(".answer").inner_text()
    folio.page.reload()
    folio.page.wait_for_selector(".document[data-kind='ready']")
    expect(folio.page.locator(".answer")).to_have_text(answer, use_inner_text=True)
    expect(folio.page.locator("#modes input:checked")).to_have_value("retrieval")
    folio.page.locator(".chip").first.click()
    assert folio.highlighted() == folio.turns[-1]["citations"][0]["cited_text"]


def test_reload_during_an_answer_says_that_it_was_stopped(folio: Any) -> None:
    folio.upload("minutes.txt", (FILLER * 400).encode())
    folio.page.check("#modes [value=long]")
    folio.ask("Which meadow was discussed?", wait=False)
    folio.page.reload()
    expect(folio.page.locator(".note")).to_contain_text("stopped")
    expect(folio.page.locator("#submit")).to_be_visible()


def test_delete_asks_first_and_closes_the_source(folio: Any, chapter: bytes) -> None:
    folio.upload("02-paged-kv.md", chapter)
    folio.page.click(".document-open")
    expect(folio.page.locator(".source-name")).to_have_text("02-paged-kv.md")
    delete = folio.page.get_by_label("Delete 02-paged-kv.md")
    delete.click()
    folio.page.get_by_role("button", name="Keep").click()
    expect(folio.page.locator(".document")).to_have_count(1)
    delete.click()
    folio.page.locator("#delete-form .danger").click()
    expect(folio.page.locator(".document")).to_have_count(0)
    expect(folio.page.locator("#source-text .blank")).to_be_visible()
    assert folio.service.json("/v1/documents")["documents"] == []


def test_a_citation_of_a_deleted_document_says_so(folio: Any, chapter: bytes) -> None:
    folio.expected = ("404",)
    folio.upload("02-paged-kv.md", chapter)
    folio.ask(QUESTION)
    folio.service.delete_all()
    folio.page.locator(".chip").first.click()
    expect(folio.page.locator("#source-text .fault")).to_contain_text("gone")


def test_files_may_be_dropped_anywhere(folio: Any, chapter: bytes) -> None:
    transfer = folio.page.evaluate_handle(
        """text => { const t = new DataTransfer(); t.items.add(new File([text], "dropped.md")); return t; }""",
        chapter.decode(),
    )
    folio.page.dispatch_event("main", "dragenter", {"dataTransfer": transfer})
    expect(folio.page.locator("#drop-veil")).to_be_visible()
    folio.page.dispatch_event("main", "drop", {"dataTransfer": transfer})
    expect(folio.page.locator("#drop-veil")).to_be_hidden()
    expect(folio.page.locator(".document[data-kind='ready'] .document-name")).to_have_text("dropped.md", timeout=60_000)


def test_an_empty_file_is_refused_by_name(folio: Any) -> None:
    folio.expected = ("400", "415", "422")
    folio.page.set_input_files("#file", {"name": "nothing.txt", "mimeType": "text/plain", "buffer": b""})
    notice = folio.page.locator(".notice")
    expect(notice).to_contain_text("nothing.txt", timeout=30_000)
    expect(notice).to_contain_text("empty")
    notice.get_by_label("Dismiss").click()
    expect(notice).to_have_count(0)


def test_a_question_without_documents_gets_an_honest_answer(folio: Any) -> None:
    folio.ask("What is the airspeed of a swallow?")
    expect(folio.page.locator(".turn")).to_contain_text("no documents")
    expect(folio.page.locator(".chip")).to_have_count(0)


def test_a_service_that_is_gone_is_said_in_words(folio: Any) -> None:
    folio.expected = ("ERR_FAILED",)
    folio.page.route("**/v1/answer", lambda route: route.abort())
    folio.ask("Is anybody there?")
    expect(folio.page.locator(".fault")).to_contain_text("does not answer")


def test_only_the_chosen_document_is_asked(folio: Any, chapter: bytes) -> None:
    folio.upload("02-paged-kv.md", chapter)
    other = folio.upload("minutes.txt", FILLER.encode())
    folio.page.get_by_label("Ask only minutes.txt").click()
    expect(folio.page.locator("#scope")).to_have_value(f"document:{other}")
    folio.ask("Which meadow was discussed?")
    assert {citation["document"] for citation in folio.turns[-1]["citations"]} <= {other}
    assert {result["document"] for result in folio.turns[-1]["results"]} == {other}


def test_the_keyboard_is_enough(folio: Any, chapter: bytes) -> None:
    folio.upload("02-paged-kv.md", chapter)
    page = folio.page
    page.locator("#turns").focus()
    page.keyboard.press("/")
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    folio.finished()
    page.locator("#turns").focus()
    page.keyboard.press("]")
    assert folio.highlighted()
    expect(page.locator(".chip").first).to_have_attribute("aria-current", "true")
    page.keyboard.press("Escape")
    expect(page.locator("#source-text mark")).to_have_count(0)
    page.keyboard.press("?")
    expect(page.locator("#help-dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help-dialog")).to_be_hidden()
    expect(page.locator("#announcer")).not_to_be_empty()


def test_focus_follows_the_eye(folio: Any, chapter: bytes) -> None:
    """Tab goes from the bar to the documents, the question and the source, and shows where it is."""
    folio.upload("02-paged-kv.md", chapter)
    folio.page.reload()
    folio.page.wait_for_selector(".document[data-kind='ready']")
    seen = []
    for _ in range(20):
        folio.page.keyboard.press("Tab")
        seen.append(folio.page.evaluate("document.activeElement.id || document.activeElement.className"))
    order = [
        seen.index(name)
        for name in ("skip", "open-key", "file", "find", "document-open", "question", "scope", "submit")
    ]
    assert order == sorted(order)


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_screen(folio: Any, chapter: bytes, width: int) -> None:
    page = folio.page
    folio.upload("a_very_long_file_name_without_any_space_" * 4 + ".md", chapter)
    page.set_viewport_size({"width": width, "height": 800})
    folio.ask(QUESTION)
    page.locator(".chip").first.click()
    page.wait_for_selector("#source-text mark")
    for view in ("documents", "ask", "source"):
        if width == 400:
            page.click(f".tabs [data-show={view}]")
        expect(page.locator(f"#{view}")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.eval_on_selector(f"#{view}", "pane => pane.scrollWidth - pane.clientWidth") <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_schemes(folio: Any, chapter: bytes, scheme: str) -> None:
    """WCAG AA: 4.5 to 1 for every text on its own background."""
    folio.upload("02-paged-kv.md", chapter)
    folio.page.emulate_media(color_scheme=scheme)
    folio.ask(QUESTION)
    folio.page.locator(".chip").first.click()
    folio.page.wait_for_selector("#source-text mark")
    assert folio.page.evaluate(CONTRAST.read_text()) == []


def test_a_key_is_asked_for_once_and_kept_in_the_tab(serve: Any, visit: Any) -> None:
    folio = visit(serve(until="/healthz", FOLIO_API_KEY="open-sesame-7391"), ready=False)
    folio.expected = ("401", "503")  # the model still loads
    dialog = folio.page.locator("#key-dialog")
    expect(dialog).to_be_visible()
    folio.page.fill("#key", "wrong")
    folio.page.keyboard.press("Enter")
    expect(folio.page.locator("#key-reason")).to_contain_text("unknown")
    folio.page.fill("#key", "open-sesame-7391")
    folio.page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(folio.page.locator("#documents-empty")).to_be_visible()
    folio.page.reload()
    expect(folio.page.locator("#documents-empty")).to_be_visible()
    expect(dialog).to_be_hidden()
    assert folio.page.evaluate("JSON.stringify(localStorage)") == "{}"


def test_a_follow_up_is_asked_in_its_conversation(folio: Any, chapter: bytes) -> None:
    """With the turns before it; what was searched for is shown, and kept over a reload."""
    folio.upload("02-paged-kv.md", chapter)
    asked: list[dict[str, Any]] = []
    folio.page.on("request", lambda request: asked.append(request.post_data_json) if "answer" in request.url else None)
    folio.page.check("#modes [value=retrieval]")
    folio.ask("How many tokens does a page of KV hold by default?")
    expect(folio.page.locator("#question")).to_have_attribute("placeholder", "Ask a follow-up…")
    expect(folio.page.locator(".query")).to_have_count(0)
    folio.ask("And what happens to it when its reference count is zero?")
    first, second = folio.turns
    assert asked[0]["history"] == []
    assert asked[1]["history"] == [
        {"role": "user", "content": first["question"]},
        {"role": "assistant", "content": first["text"]},
    ]
    expect(folio.page.locator(".query")).to_have_text(f"searched for: {second['query']}")
    assert "KV" in second["query"].split()
    folio.page.reload()
    expect(folio.page.locator(".query")).to_contain_text("searched for")
    folio.ask("Why?")
    assert [turn["content"] for turn in asked[2]["history"]][2] == second["question"]


def test_a_new_conversation_forgets_and_keeps_in_sight(folio: Any, chapter: bytes) -> None:
    folio.upload("02-paged-kv.md", chapter)
    asked: list[dict[str, Any]] = []
    folio.page.on("request", lambda request: asked.append(request.post_data_json) if "answer" in request.url else None)
    button = folio.page.get_by_label("New conversation")
    expect(button).to_be_hidden()
    folio.ask(QUESTION)
    button.click()
    expect(button).to_be_hidden()
    expect(folio.page.locator("#question")).to_be_focused()
    expect(folio.page.locator("#question")).to_have_attribute("placeholder", "Ask a question…")
    folio.page.reload()
    expect(folio.page.locator(".anew")).to_have_count(1)
    folio.ask("What is a ragged batch?")
    assert asked[-1]["history"] == []
    expect(folio.page.locator(".turn")).to_have_count(2)
    expect(folio.page.locator(".turn + .anew + .turn")).to_have_count(1)
    folio.page.locator("#turns").focus()
    folio.page.keyboard.press("n")
    expect(folio.page.locator(".anew")).to_have_count(2)
    folio.page.reload()
    expect(folio.page.locator(".turn + .anew + .turn + .anew")).to_have_count(1)


def test_what_brought_no_answer_is_no_part_of_the_conversation(folio: Any, chapter: bytes) -> None:
    folio.expected = ("ERR_FAILED",)
    folio.upload("02-paged-kv.md", chapter)
    folio.ask(QUESTION)
    folio.page.route("**/v1/answer", lambda route: route.abort())
    folio.ask("Is anybody there?")
    asked: list[dict[str, Any]] = []
    folio.page.unroute("**/v1/answer")
    folio.page.on("request", lambda request: asked.append(request.post_data_json) if "answer" in request.url else None)
    folio.ask("And how large is it?")
    assert [turn["content"] for turn in asked[0]["history"]] == [QUESTION, folio.turns[0]["text"]]


def test_an_answer_is_copied_with_its_citations(folio: Any, chapter: bytes) -> None:
    folio.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    folio.upload("02-paged-kv.md", chapter)
    folio.ask(QUESTION)
    turn = folio.turns[-1]
    folio.page.get_by_role("button", name="Copy").click()
    copied = folio.page.evaluate("navigator.clipboard.readText()")
    assert copied == folio.page.evaluate("turn => import('/js/actions.js').then(m => m.withCitations(turn))", turn)
    assert "[1] 02-paged-kv.md" in copied
    assert " ".join(turn["citations"][0]["cited_text"].split()) in copied


def test_the_last_question_can_be_asked_again_and_changed(folio: Any, chapter: bytes) -> None:
    folio.upload("02-paged-kv.md", chapter)
    asked: list[dict[str, Any]] = []
    folio.page.on("request", lambda request: asked.append(request.post_data_json) if "answer" in request.url else None)
    folio.ask(QUESTION)
    folio.ask("What is a ragged batch?")
    expect(folio.page.locator(".turn").first.get_by_role("button", name="Ask again")).to_have_count(0)
    folio.page.get_by_role("button", name="Ask again").click()
    folio.finished()
    assert len(asked) == 3
    assert asked[2] == asked[1]
    expect(folio.page.locator(".turn")).to_have_count(2)
    edit = folio.page.get_by_role("button", name="Edit question")
    edit.click()
    expect(folio.page.locator("#question")).to_be_focused()
    expect(folio.page.locator("#question")).to_have_value("What is a ragged batch?")
    folio.page.keyboard.press("Escape")
    expect(folio.page.locator("#question")).to_have_value("")
    expect(folio.page.locator(".edited")).to_have_count(0)
    edit.click()
    folio.ask("What is chunked prefill?")
    assert [turn["question"] for turn in folio.turns] == [QUESTION, "What is chunked prefill?"]
    assert asked[3]["history"] == asked[1]["history"]


def test_the_focus_stays_where_it_was(folio: Any, chapter: bytes) -> None:
    """When an answer is drawn anew, and when the source that was opened is closed again."""
    folio.upload("02-paged-kv.md", chapter)
    folio.ask(QUESTION)
    chip = folio.page.locator(".chip").first
    chip.focus()
    folio.page.keyboard.press("t")
    expect(chip).to_be_focused()
    folio.page.keyboard.press("t")
    folio.page.keyboard.press("Enter")
    folio.page.wait_for_selector("#source-text mark")
    folio.page.locator("#source-close").focus()
    folio.page.keyboard.press("Enter")
    expect(chip).to_be_focused()
