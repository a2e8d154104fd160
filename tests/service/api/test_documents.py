"""Upload, list, read, search, delete; and what must be refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

BOOK = "The bridge at Hampton was built by Ada Miller in 1862.\r\nIt has seven arches — of grey stone.\n"
PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def book(service: Any) -> dict[str, Any]:
    return service.ingest("bridge.txt", BOOK.encode())


def test_upload_is_a_job_with_a_document(service: Any, book: dict[str, Any]) -> None:
    assert book["status"] == "ready"
    shown = service.client.get(f"/v1/documents/{book['id']}").json()
    assert (shown["name"], shown["status"], shown["chars"]) == ("bridge.txt", "ready", len(BOOK))
    assert "owner" not in shown


def test_the_text_is_exact_and_sliced_by_characters(service: Any, book: dict[str, Any]) -> None:
    whole = service.client.get(f"/v1/documents/{book['id']}/text")
    assert whole.headers["content-type"] == "text/plain; charset=utf-8"
    assert whole.content == BOOK.encode()
    part = service.client.get(f"/v1/documents/{book['id']}/text", params={"start": 4, "end": 10})
    assert part.text == BOOK[4:10]
    bad = service.client.get(f"/v1/documents/{book['id']}/text", params={"start": 9, "end": 4})
    assert (bad.status_code, bad.json()["param"]) == (400, "end")


def test_search_gives_slices_of_the_text(service: Any, book: dict[str, Any]) -> None:
    found = service.client.post("/v1/search", json={"query": "who built the bridge", "limit": 3}).json()
    hit = found["results"][0]
    assert hit["document"] == book["id"]
    assert hit["text"] == BOOK[hit["start"] : hit["end"]]
    assert set(hit) == {"chunk_id", "document", "name", "start", "end", "page", "place", "context", "score", "text"}
    assert isinstance(found["generation"], int)


def test_listing_goes_page_by_page(service: Any) -> None:
    ids = {service.ingest(f"n{i}.txt", f"Number {i} is here.".encode())["id"] for i in range(5)}
    seen: list[str] = []
    cursor = None
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = service.client.get("/v1/documents", params=params).json()
        assert len(page["documents"]) <= 2
        seen += [document["id"] for document in page["documents"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen))
    assert ids <= set(seen)


def test_delete_is_at_once(service: Any) -> None:
    document = service.ingest("gone.txt", b"The zebra crossing at Lower Slaughter was painted blue.")["id"]
    assert service.client.delete(f"/v1/documents/{document}").status_code == 204
    assert service.client.get(f"/v1/documents/{document}").status_code == 404
    assert service.client.delete(f"/v1/documents/{document}").status_code == 404
    found = service.client.post("/v1/search", json={"query": "zebra crossing"}).json()
    assert document not in {hit["document"] for hit in found["results"]}


def test_the_same_content_is_stored_once(service: Any, book: dict[str, Any]) -> None:
    again = service.ingest("bridge.txt", BOOK.encode())
    assert (again["id"], again["deduplicated"]) == (book["id"], True)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd.txt", "passwd.txt"),
        ("..\\..\\boot.txt", "boot.txt"),
        ("<img src=x onerror=alert(1)>.txt", None),
        ("a" * 300 + ".txt", None),
    ],
)
def test_a_name_is_a_label(service: Any, name: str, shown: str | None) -> None:
    document = service.ingest(name, f"A file called {name}.".encode())
    stored = service.client.get(f"/v1/documents/{document['id']}").json()["name"]
    assert len(stored) <= 255
    assert "/etc" not in stored
    if shown is not None:
        assert stored == shown


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("empty.txt", b"", "empty"),
        ("photo.pdf", b"\x89PNG\r\n\x1a\n" + b"\0" * 64, ""),
        ("cut.pdf", b"%PDF-1.7\n1 0 obj\n<< /Type /Cat", ""),
        ("blob.bin", bytes(range(256)) * 4, ""),
    ],
)
def test_a_bad_file_is_a_failed_job_that_names_it(service: Any, name: str, data: bytes, says: str) -> None:
    answer = service.client.post("/v1/documents", files={"file": (name, data)})
    assert answer.status_code == 202
    job = service.wait(answer.json()["id"])
    assert job["status"] == "failed"
    assert name in job["documents"][0]["error"]
    assert says in job["documents"][0]["error"]


def test_an_oversized_upload_is_refused_by_its_declared_length(start_service: Callable[..., Any]) -> None:
    service = start_service(max_upload_mb=0.01, max_body_mb=0.01)
    big = service.client.post("/v1/documents", files={"file": ("big.txt", b"x" * 200_000)})
    assert (big.status_code, big.headers["content-type"]) == (413, PROBLEM)
    assert "FOLIO_MAX_UPLOAD_MB" in big.json()["detail"]

    def undeclared() -> Any:
        yield b'{"query": "'
        for _ in range(100):
            yield b"x" * 1000
        yield b'"}'

    chunked = service.client.post("/v1/search", content=undeclared(), headers={"content-type": "application/json"})
    assert (chunked.status_code, chunked.headers["content-type"]) == (413, PROBLEM)


def test_idempotency(service: Any) -> None:
    headers = {"Idempotency-Key": "one"}
    first = service.client.post("/v1/documents", files={"file": ("i.txt", b"Idem.")}, headers=headers)
    again = service.client.post("/v1/documents", files={"file": ("i.txt", b"Idem.")}, headers=headers)
    other = service.client.post("/v1/documents", files={"file": ("i.txt", b"Other.")}, headers=headers)
    assert (first.status_code, again.status_code, other.status_code) == (202, 202, 422)
    assert first.json()["id"] == again.json()["id"]
    assert other.headers["content-type"] == PROBLEM


def test_a_page_of_a_pdf_and_where_a_passage_is_printed(service: Any, tmp_path: Any) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(4, 2))
    figure.text(0.25, 0.5, "Here stands a sentence.")
    figure.savefig(tmp_path / "p.pdf")
    pyplot.close(figure)
    document = service.ingest("p.pdf", (tmp_path / "p.pdf").read_bytes())["id"]
    path = f"/v1/documents/{document}"
    image = service.client.get(f"{path}/pages/1/image", params={"width": 400})
    assert (image.status_code, image.headers["content-type"]) == (200, "image/png")
    assert int.from_bytes(image.content[16:20]) == 400
    text = service.client.get(f"{path}/text").text
    span = {"start": text.index("sentence"), "end": text.index("sentence") + 8}
    [box] = service.client.get(f"{path}/boxes", params=span).json()["boxes"]
    assert (box["page"], box["page_width"], box["page_height"]) == (1, 288.0, 144.0)
    assert 0.25 * 288 < box["left"] < box["right"] < 288
    assert box["bottom"] < 0.55 * 144 < 0.6 * 144 < box["top"] + 10
    for wrong, status in (
        (f"{path}/pages/2/image", 404),
        (f"{path}/pages/0/image", 422),
        (f"{path}/pages/1/image?width=9", 422),
        (f"{path}/boxes?start=3&end=1", 400),
        (f"{path}/boxes?start=0&end=200000", 400),
    ):
        answer = service.client.get(wrong)
        assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM), wrong


def test_a_job_can_be_cancelled_or_has_ended(service: Any) -> None:
    job = service.client.post("/v1/documents", files={"file": ("c.txt", b"Cancel me.")}).json()["id"]
    cancelled = service.client.post(f"/v1/jobs/{job}/cancel")
    assert cancelled.status_code in (200, 409)
    assert service.wait(job)["status"] in ("cancelled", "done")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_unknown_ids_are_404(service: Any, method: str) -> None:
    answer = service.client.request(method, "/v1/documents/nosuchthing")
    assert (answer.status_code, answer.headers["content-type"]) == (404, PROBLEM)
    assert service.client.get("/v1/jobs/nosuchjob").status_code == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": "x", "limit": 0}, "limit"),
        ({"query": "x", "limit": 10**30}, "limit"),
        ({"query": "x", "mode": "magic"}, "mode"),
        ({"query": "x", "documents": ["../x"]}, "documents.0"),
        ({"query": "\ud800"}, "query"),
        ({"query": "x", "colour": "red"}, "colour"),
        ({}, "query"),
    ],
)
def test_bad_searches_name_the_field(service: Any, body: dict[str, Any], param: str) -> None:
    import json

    answer = service.client.post("/v1/search", content=json.dumps(body), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM)
    assert answer.json()["errors"][0]["param"] == param


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe{}", b"[1", b"", b'"text"', b"NaN"])
def test_malformed_json_is_4xx(service: Any, content: bytes) -> None:
    answer = service.client.post("/v1/search", content=content, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert answer.headers["content-type"] == PROBLEM


@pytest.mark.parametrize("cursor", ["%%%", "Zm9v=", "////"])
def test_a_foreign_cursor_is_refused_or_empty(service: Any, cursor: str) -> None:
    answer = service.client.get("/v1/documents", params={"cursor": cursor})
    assert answer.status_code in (200, 400)


def test_an_unknown_collection_is_404(service: Any) -> None:
    assert service.client.post("/v1/search", json={"query": "x", "collection": "none"}).status_code == 404


def test_a_listing_is_searched_and_ordered(start_service: Callable[..., Any], make_scripted: Any) -> None:
    service = start_service(engine=make_scripted())
    for name in ("Bude.txt", "avon.txt", "notes 100%.txt", "Ä.txt"):
        service.ingest(name, f"This is {name}.".encode())

    def listed(**query: Any) -> list[str]:
        found: list[str] = []
        page = {"next_cursor": None}
        while True:
            asked = query | {"limit": 2} | ({"cursor": page["next_cursor"]} if page["next_cursor"] else {})
            page = service.client.get("/v1/documents", params=asked).json()
            found += [one["name"] for one in page["documents"]]
            if not page["next_cursor"]:
                return found

    assert listed(order="name") == ["Bude.txt", "avon.txt", "notes 100%.txt", "Ä.txt"]
    assert listed(order="newest") == ["Ä.txt", "notes 100%.txt", "avon.txt", "Bude.txt"]
    assert listed(search="BUDE") == ["Bude.txt"]
    assert listed(search="Ä") == ["Ä.txt"]
    assert listed(search="%") == ["notes 100%.txt"], "a sign, and not any text"
    assert listed(search="nothing") == []
    assert service.client.get("/v1/documents", params={"search": "\x00"}).status_code == 422
    assert service.client.get("/v1/documents", params={"order": "size"}).status_code == 422
    assert service.client.get("/v1/collections").json() == {"collections": [{"name": "default", "documents": 4}]}
