"""Kept conversations: each owner's own, bounded, exported, and erased with the documents that they were made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from retrieval.store.tables import conversation_turns
from service.conversations import store as conversation_store
from service.conversations.markdown import exported

from ..api.conftest import make_engine, start_service  # noqa: F401


@pytest.fixture(scope="module")
def service(start_service: Callable[..., Any], make_scripted: Any) -> Any:  # noqa: F811
    return start_service(engine=make_scripted())


def turn(question: str, text: str, *documents: str, **more: Any) -> dict[str, Any]:
    cited = [{"document": one, "name": "a.txt", "place": "page 3", "cited_text": text} for one in documents]
    return {"question": question, "text": text, "citations": cited, "results": [], **more}


def made(service: Any, *turns: dict[str, Any], title: str = "Bridges") -> str:
    answer = service.client.post("/v1/conversations", json={"title": title})
    assert answer.status_code == 201, answer.text
    for ordinal, one in enumerate(turns):
        kept = service.client.put(f"/v1/conversations/{answer.json()['id']}/turns/{ordinal}", json=one)
        assert kept.status_code == 200, kept.text
    return str(answer.json()["id"])


def turns_of(service: Any, conversation: str) -> list[dict[str, Any]]:
    return service.client.get(f"/v1/conversations/{conversation}/turns").json()["turns"]


def test_a_conversation_is_kept_renamed_and_deleted(service: Any) -> None:
    document = service.ingest("a.txt", b"The bridge has seven arches.")["id"]
    first, second = turn("How many?", "Seven.", document, mode="long"), turn("And who?", "Ada.")
    conversation = made(service, first, second)
    assert [one["question"] for one in turns_of(service, conversation)] == ["How many?", "And who?"]
    assert turns_of(service, conversation)[0]["mode"] == "long", "what else the page knows"
    again = service.client.put(f"/v1/conversations/{conversation}/turns/0", json=turn("How long?", "Long."))
    assert again.json()["turns"] == 1, "what followed another question is gone"
    assert service.client.put(f"/v1/conversations/{conversation}", json={"title": "Arches"}).json()["title"] == "Arches"
    listed = service.client.get("/v1/conversations").json()["conversations"]
    assert [one["title"] for one in listed if one["id"] == conversation] == ["Arches"]
    assert service.client.delete(f"/v1/conversations/{conversation}").status_code == 204
    assert service.client.get(f"/v1/conversations/{conversation}/turns").status_code == 404


def test_a_deleted_document_takes_its_turns_and_what_followed(service: Any) -> None:
    kept = service.ingest("kept.txt", b"The mill is old.")["id"]
    gone = service.ingest("gone.txt", b"Tamsin Quellworthy owns it.")["id"]
    conversation = made(
        service,
        turn("Mill?", "Old.", kept),
        turn("Whose?", "Tamsin Quellworthy owns it.", gone),
        turn("Really?", "Yes, Quellworthy."),
    )
    assert service.client.delete(f"/v1/documents/{gone}").status_code == 204
    assert [one["question"] for one in turns_of(service, conversation)] == ["Mill?"]
    with service.runtime.library.database.read() as connection:
        assert "Quellworthy" not in str(connection.execute(sa.select(conversation_turns)).all())
    late = service.client.put(f"/v1/conversations/{conversation}/turns/1", json=turn("Whose?", "Quellworthy.", gone))
    assert late.status_code == 409, "an answer that comes after the delete"


def test_nobody_else_sees_or_changes_it(start_service: Callable[..., Any], make_scripted: Any) -> None:  # noqa: F811
    service = start_service(engine=make_scripted())
    keys = service.runtime.keys
    mine, theirs = ({"Authorization": f"Bearer {keys.create(name)[1]}"} for name in ("alice", "bob"))
    document = service.ingest("a.txt", b"The bridge has seven arches.", **mine)["id"]
    conversation = service.client.post("/v1/conversations", json={"title": "T"}, headers=mine).json()["id"]
    place = f"/v1/conversations/{conversation}"
    for method, path, body in [
        ("GET", f"{place}/turns", None),
        ("GET", f"{place}/export", None),
        ("PUT", place, {"title": "Mine"}),
        ("PUT", f"{place}/turns/0", turn("Q", "A")),
        ("DELETE", place, None),
    ]:
        assert service.client.request(method, path, json=body, headers=theirs).status_code == 404, path
    assert service.client.get("/v1/conversations", headers=theirs).json() == {"conversations": []}
    other = service.client.post("/v1/conversations", json={"title": "T"}, headers=theirs).json()["id"]
    foreign = service.client.put(f"/v1/conversations/{other}/turns/0", json=turn("Q", "A", document), headers=theirs)
    assert foreign.status_code == 409, "as of a document that was deleted"


@pytest.mark.parametrize(
    "body",
    [
        {"question": "Q"},
        turn("Q", "A", "../x"),
        turn("Q", "A", big="x" * 600_000),
        {"question": "Q", "text": "A", "citations": [{"name": "no document"}]},
        {"question": "\ud800", "text": "A"},
        turn("Q", "A", extra="\ud800"),
        turn("Q", "A", extra=[float("nan")]),
    ],
)
def test_what_no_page_would_keep_is_refused(service: Any, body: dict[str, Any]) -> None:
    import json

    conversation = made(service)
    sent = service.client.put(
        f"/v1/conversations/{conversation}/turns/0",
        content=json.dumps(body),
        headers={"Content-Type": "application/json"},
    )
    assert sent.status_code in (400, 422), sent.text


def test_turns_follow_one_another_and_there_are_bounds(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = made(service)
    place = f"/v1/conversations/{conversation}/turns"
    assert service.client.put(f"{place}/1", json=turn("Q", "A")).status_code == 400
    assert service.client.put(f"{place}/200", json=turn("Q", "A")).status_code == 422
    monkeypatch.setattr(conversation_store, "MOST_CONVERSATIONS", 0)
    assert service.client.post("/v1/conversations", json={"title": "T"}).status_code == 413


def test_it_is_markdown_with_footnotes(service: Any) -> None:
    document = service.ingest("b.txt", b"The bridge has seven arches.")["id"]
    one = turn("How *many*?", "Seven. <b>So</b>.", document)
    one["citations"][0] |= {"answer_end": 6, "name": "[x](http://evil.example)"}
    conversation = made(service, one, title="Bridges & arches")
    answer = service.client.get(f"/v1/conversations/{conversation}/export")
    assert answer.headers["content-disposition"] == 'attachment; filename="Bridges-arches.md"'
    assert answer.text == (
        "# Bridges & arches\n\n## How \\*many\\*?\n\nSeven.[^1-1] \\<b\\>So\\</b\\>.\n\n"
        "[^1-1]: \\[x\\](http://evil.example), page 3: “Seven. \\<b\\>So\\</b\\>.”\n"
    )
    assert exported("Empty", []) == "# Empty\n"


def test_it_is_markdown_with_bibtex(service: Any) -> None:
    """Of each passage one entry, however often it is cited, and nothing in it ends it."""
    document = service.ingest("c.txt", b"The bridge has seven arches.")["id"]
    one, two = turn("How many?", "Seven. So.", document), turn("Really?", "Yes.", document, document)
    for citation, start in zip([*one["citations"], *two["citations"]], (4, 4, 0), strict=True):
        citation |= {"start": start, "end": 9, "name": "Bridges & arches.txt", "cited_text": "a } b_c `x` \\ 5%\n```"}
    one["citations"][0]["answer_end"] = 6
    conversation = made(service, one, two)
    place = f"/v1/conversations/{conversation}/export"
    text = service.client.get(place, params={"references": "bibtex"}).text
    quoted = (
        "a \\textbraceright{} b\\_c "
        + r"\textasciigrave{}x\textasciigrave{} \textbackslash{} 5\%"
        + " "
        + 3 * r"\textasciigrave{}"
    )
    first = (
        "@misc{bridges-arches-1,\n  title = {Bridges \\& arches.txt},\n"
        f"  howpublished = {{Folio document {document}, characters 4-9}},\n"
        f"  note = {{page 3: ``{quoted}''}},\n}}\n"
    )
    assert text.startswith(
        "# Bridges\n\n## How many?\n\nSeven. [@bridges-arches-1] So.\n\n"
        "## Really?\n\nYes. [@bridges-arches-1] [@bridges-arches-2]\n\n## References\n\n```bibtex\n"
    )
    assert first in text
    assert text.count("@misc{") == 2
    assert text.endswith("}\n```\n")
    assert exported("Empty", [], "bibtex") == "# Empty\n"
    assert service.client.get(place, params={"references": "word"}).status_code == 422
