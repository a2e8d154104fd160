"""Summaries: what a model writes is held to the document, and the document speaks for itself where nothing is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.answering import summary as summaries

from ..api.conftest import make_engine, start_service  # noqa: F401

TEXT = (
    "The bridge at Hampton crosses the river Avon below the mill. Ada Miller built the bridge at Hampton of grey stone "
    "in 1862. The bridge at Hampton has seven arches of grey stone. Visitors may buy lemonade on summer afternoons.\n"
)
SENTENCES = [f"{one.strip().rstrip('.')}." for one in TEXT.split(". ")]


class Reply:
    """What the model says, and what it was asked last."""

    says = ""
    prompt = ""

    def __call__(self, prompt: str) -> str:
        self.prompt = prompt
        return self.says


@pytest.fixture(scope="module")
def reply() -> Reply:
    return Reply()


@pytest.fixture(scope="module")
def service(start_service: Callable[..., Any], make_scripted: Any, reply: Reply) -> Any:  # noqa: F811
    return start_service(engine=make_scripted(reply))


@pytest.fixture(scope="module")
def document(service: Any) -> str:
    return str(service.ingest("bridge.txt", TEXT.encode())["id"])


def summary(service: Any, document: str, **query: Any) -> dict[str, Any]:
    answer = service.client.get(f"/v1/documents/{document}/summary", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def check(found: dict[str, Any], text: str) -> None:
    """That each claim is a slice of the summary, and each citation one of the document."""
    assert found["text"] == " ".join(claim["text"] for claim in found["claims"])
    for claim in found["claims"]:
        assert found["text"][claim["start"] : claim["end"]] == claim["text"]
    assert {one["claim"] for one in found["citations"]} == set(range(len(found["claims"])))
    for one in found["citations"]:
        assert text[one["start"] : one["end"]] == one["cited_text"]
        claim = found["claims"][one["claim"]]
        assert (one["answer_start"], one["answer_end"]) == (claim["start"], claim["end"])
        assert one["verified"]


def test_what_the_model_writes_is_kept_where_the_document_supports_it(
    service: Any, document: str, reply: Reply
) -> None:
    reply.says = f"The bridge fell into the sea in 1999. {SENTENCES[1]} Unicorns cross it. {SENTENCES[2]}"
    found = summary(service, document)
    assert "at most 5 sentences" in reply.prompt
    assert TEXT.strip() in reply.prompt, "it was given whole"
    assert found["text"] == f"{SENTENCES[1]} {SENTENCES[2]}"
    assert (found["written"], found["left_out"], found["note"]) == (True, 2, None)
    check(found, TEXT)
    assert summary(service, document, sentences=1)["text"] == SENTENCES[1]


@pytest.mark.parametrize("says", ["Unicorns cross the bridge.", "The documents do not say."])
def test_the_document_speaks_where_the_model_has_no_support(
    service: Any, document: str, reply: Reply, says: str
) -> None:
    reply.says = says
    found = summary(service, document, sentences=2)
    assert (found["written"], found["note"]) == (False, summaries.NOTHING_SUPPORTED)
    assert len(found["claims"]) == 2
    assert {claim["text"] for claim in found["claims"]} <= set(SENTENCES[:3])
    check(found, TEXT)


def test_a_model_that_quotes_is_not_asked(
    service: Any, document: str, reply: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.runtime.answerer.layout, "quotes", True, raising=False)
    reply.prompt = ""
    found = summary(service, document, sentences=3)
    assert (found["written"], found["left_out"], found["note"], reply.prompt) == (False, 0, None, "")
    assert found["text"] == " ".join(SENTENCES[:3])
    check(found, TEXT)


def test_a_document_too_long_for_the_window_is_shown_in_its_sentences(
    service: Any, reply: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of one that is longer than is read, parts from all over it are."""
    monkeypatch.setattr(summaries, "READ_CHARS", 16_000)
    line = "The committee of the parish met in the hall at {} and spoke of the drainage of the lower meadow.\n\n"
    text = "".join(line.format(number) for number in range(400))
    document = service.ingest("minutes.txt", text.encode())["id"]
    reply.says = line.format(399)
    found = summary(service, document)
    assert found["chars"] == len(text)
    assert 12_000 < found["read_chars"] <= 16_000, "without the sentences that are cut"
    assert len(reply.prompt) < 8192
    assert reply.prompt.count("The committee") > 8
    assert "at 39" in reply.prompt, "the end of it too"
    check(found, text)


def test_a_document_without_sentences_has_no_summary(service: Any, reply: Reply) -> None:
    document = service.ingest("figures.csv", b"a,b\n1,2\n3,4\n")["id"]
    reply.says = "Unicorns cross the bridge."
    found = summary(service, document)
    assert (found["text"], found["note"]) == ("", summaries.NO_SENTENCES)


def test_nobody_elses_document_is_summarised(service: Any) -> None:
    assert service.client.get("/v1/documents/nosuch/summary").status_code == 404
    assert service.client.get("/v1/documents/nosuch/summary", params={"sentences": 0}).status_code == 422


def test_the_command_line_shows_it_with_its_sources(
    folio: Callable[..., Any], home: Path, scripted_commands: Callable[..., None]
) -> None:
    carried = "It has seven arches of grey stone."
    scripted_commands(lambda prompt: f"{carried} Unicorns cross it.")
    docs = ("--home", home, "docs")
    code, out, said = folio(*docs, "summary", "bridge.txt")
    assert code == 0, said
    assert out.startswith(f"{carried}\n\n[1] bridge.txt, ")
    assert "(verbatim)" in out
    assert "Left out for want of support: 1 sentences" in said
    assert json.loads(folio(*docs, "summary", "bridge.txt", "--json")[1])["claims"][0]["text"] == carried
    assert folio(*docs, "summary", "nosuch")[0] == 1


def test_the_command_line_names_questions(
    folio: Callable[..., Any], home: Path, scripted_commands: Callable[..., None]
) -> None:
    scripted_commands(lambda prompt: "The bridge at Hampton was built by Ada Miller in 1862.")
    code, out, said = folio("--home", home, "docs", "questions", "bridge.txt", "--limit", "1")
    assert (code, out) == (0, "When was the bridge at Hampton built?\n"), said
