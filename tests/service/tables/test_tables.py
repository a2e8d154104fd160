"""Tables over REST and on the command line: rows with their sources, gone on with, each owner's own, erased."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from openpyxl import load_workbook

from retrieval.library import Library
from retrieval.store.tables import answer_rows
from service.tables import store as tables_store
from service.tables.store import TableSpec, TableStore

from ..api.conftest import make_engine, start_service  # noqa: F401

TOWNS = {
    "avon.txt": "The bridge at Avon was built in 1862. It is of grey stone.\n",
    "bude.txt": "The bridge at Bude was built in 1871. It is of red brick.\n",
    "cork.txt": "The ferry at Cork is slow. Nobody knows how old it is.\n",
}


def reply(prompt: str) -> str:
    """What a good model would say of the one document in its prompt, in the shape that it is asked for."""
    sentences = re.findall(r"The (?:bridge|ferry) [^.]*\.|It is of [^.]*\.", prompt)
    if "When was" in prompt:
        built = next((one for one in sentences if "built" in one), None)
        return "not stated\nThe documents do not say." if built is None else f"{built[-5:-1]}\n{built}"
    return sentences[0] if sentences else "The documents do not say."


@pytest.fixture(scope="module")
def service(start_service: Callable[..., Any], make_scripted: Any) -> Any:  # noqa: F811
    service = start_service(engine=make_scripted(reply))
    for name, text in TOWNS.items():
        service.ingest(name, text.encode())
    return service


COLUMNS = [{"question": "What is there?"}, {"question": "When was it built?", "type": "date"}]


def filled(service: Any, headers: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A table, once it is done."""
    made = service.client.post("/v1/tables", json={"columns": COLUMNS, **spec}, headers=headers)
    assert made.status_code == 202, made.text
    return until_done(service, made.headers["location"], headers)


def until_done(service: Any, place: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    for _ in range(400):
        head = service.client.get(place, headers=headers).json()
        if head["status"] == "done":
            return head
        time.sleep(0.05)
    raise AssertionError(head)


def rows(service: Any, head: dict[str, Any], **query: Any) -> list[dict[str, Any]]:
    return service.client.get(f"/v1/tables/{head['id']}/rows", params=query).json()["rows"]


def test_every_cell_has_its_source_or_is_a_blank_that_says_why(service: Any) -> None:
    head = filled(service)
    assert (head["rows_total"], head["rows_done"]) == (3, 3)
    found = rows(service, head)
    assert [row["name"] for row in found] == ["avon.txt", "bude.txt", "cork.txt"]
    assert [row["cells"][0]["value"] for row in found][2] == "The ferry at Cork is slow."
    assert [row["cells"][1]["value"] for row in found] == ["1862", "1871", None]
    assert found[2]["cells"][1]["blank"] == "the document does not say"
    for row in found[:2]:
        for cell in row["cells"]:
            [source] = cell["citations"]
            span = {"start": source["start"], "end": source["end"]}
            text = service.client.get(f"/v1/documents/{row['document']}/text", params=span).text
            assert text == source["cited_text"]
            assert cell["support"] == "verbatim"


def test_rows_come_a_page_at_a_time(service: Any) -> None:
    head = filled(service)
    first = service.client.get(f"/v1/tables/{head['id']}/rows", params={"limit": 2}).json()
    assert [row["row"] for row in first["rows"]] == [0, 1]
    rest = service.client.get(f"/v1/tables/{head['id']}/rows", params={"limit": 2, "after": first["next"]}).json()
    assert ([row["row"] for row in rest["rows"]], rest["next"]) == ([2], None)


def test_it_is_a_file_of_each_kind_and_no_cell_is_a_formula(service: Any) -> None:
    evil = '=HYPERLINK("http://evil.example","x")'
    head = filled(service, columns=[{"question": evil}, *COLUMNS])
    files = {
        form: service.client.get(f"/v1/tables/{head['id']}/export", params={"format": form}).content
        for form in ("csv", "xlsx", "json")
    }
    lines = list(csv.reader(io.StringIO(files["csv"].decode())))
    assert lines[0][3] == f"'{evil}"
    assert lines[1][9:12] == ["1862", "verbatim", "characters 0-37"]
    sheet = load_workbook(io.BytesIO(files["xlsx"])).active
    assert (sheet["D1"].value, sheet["D1"].data_type) == (evil, "s")
    assert sheet["J2"].value == "1862"
    assert [row["cells"][2]["value"] for row in json.loads(files["json"])["rows"]] == ["1862", "1871", None]


def test_a_deleted_document_takes_its_row_with_it(service: Any) -> None:
    document = service.ingest("deal.txt", b"The bridge at Deal was built in 1999 by Tamsin Quellworthy.\n")["id"]
    head = filled(service)
    assert "Quellworthy" in json.dumps(rows(service, head))
    assert service.client.delete(f"/v1/documents/{document}").status_code == 204
    assert [row["name"] for row in rows(service, head)] == list(TOWNS)
    with service.runtime.library.database.read() as connection:
        assert not connection.execute(sa.select(answer_rows).where(answer_rows.c.document_id == document)).all()


def test_nobody_else_sees_or_changes_it(start_service: Callable[..., Any], make_scripted: Any) -> None:  # noqa: F811
    service = start_service(engine=make_scripted(reply))
    mine, theirs = ({"Authorization": f"Bearer {service.runtime.keys.create(name)[1]}"} for name in ("alice", "bob"))
    reads = {"Authorization": f"Bearer {service.runtime.keys.create('alice', scopes=['read'])[1]}"}
    document = service.ingest("avon.txt", TOWNS["avon.txt"].encode(), **mine)["id"]
    head = filled(service, mine)
    place = f"/v1/tables/{head['id']}"
    for method, path in [
        ("GET", place),
        ("GET", f"{place}/rows"),
        ("GET", f"{place}/export"),
        ("POST", f"{place}/cancel"),
        ("POST", f"{place}/resume"),
        ("DELETE", place),
    ]:
        assert service.client.request(method, path, headers=theirs).status_code == 404, path
    assert service.client.get("/v1/tables", headers=theirs).json() == {"tables": []}
    other = service.client.post("/v1/tables", json={"columns": COLUMNS, "documents": [document]}, headers=theirs)
    assert other.status_code == 404
    assert service.client.get(place, headers=reads).status_code == 200
    assert service.client.delete(place, headers=reads).status_code == 403
    assert service.client.delete(place, headers=mine).status_code == 204
    assert service.client.get(place, headers=mine).status_code == 404


def test_what_a_table_may_be(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**spec: Any) -> tuple[int, str]:
        answer = service.client.post("/v1/tables", json={"columns": COLUMNS, **spec})
        return answer.status_code, answer.text

    assert refused(columns=[])[0] in (400, 422)
    assert refused(columns=COLUMNS * 11)[0] in (400, 422)
    assert refused(collection="nowhere")[0] == 404
    assert refused(documents=["nosuch"])[0] == 404
    monkeypatch.setattr(tables_store, "MOST_ROWS", 2)
    code, said = refused()
    assert (code, "at most 2 rows" in said) == (413, True)
    monkeypatch.setattr(tables_store, "MOST_ROWS", 10_000)
    monkeypatch.setattr(tables_store, "MOST_UNFINISHED", 0)
    assert refused()[0] == 429


@pytest.fixture
def store(home: Path) -> Any:
    with Library.open(home) as library:
        kept = TableStore(lambda: library.database)
        kept.documents = library.documents()  # type: ignore[attr-defined]
        yield kept


SPEC = TableSpec(columns=({"question": "What?"},))
CELL = {"value": "x", "blank": None, "answer": "x", "support": "none", "mode": "", "citations": [], "error": None}


def test_one_process_fills_a_table_and_another_goes_on_when_it_is_gone(store: Any, monkeypatch: Any) -> None:
    head = store.create("local", SPEC, store.documents)
    assert store.claim("one").id == head.id
    assert store.claim("two") is None
    row = store.next_row(head.id, "one")
    assert store.next_row(head.id, "two") is None, "it is not his"
    store.keep(head.id, row.ordinal, row.version, [CELL])
    later = tables_store.now() + 2 * tables_store.LEASE
    monkeypatch.setattr(tables_store, "now", lambda: later)
    assert store.claim("two").id == head.id, "the lease ran out"
    assert store.next_row(head.id, "one") is None
    again = store.next_row(head.id, "two")
    assert again.ordinal == 1, "what is answered is not asked again"
    store.keep(head.id, again.ordinal, again.version, [CELL | {"error": "It broke."}])
    store.finish(head.id, "two")
    assert store.get("local", head.id).status == "done"
    assert store.resume("local", head.id).done == 1, "what failed is asked again"
    store.cancel("local", head.id)
    assert store.claim("three") is None
    assert store.resume("local", head.id).status == "queued"


def test_the_command_line_fills_and_goes_on(
    folio: Callable[..., Any], home: Path, tmp_path: Path, scripted_commands: Callable[..., None]
) -> None:
    scripted_commands(reply)
    table = ("--home", home, "table")
    code, out, said = folio(
        *table, "When was the bridge built?", "--type", "1:date", "--csv", tmp_path / "t.csv", "--json"
    )
    assert code == 0, said
    made = json.loads(out)
    values = {row["name"]: row["cells"][0]["value"] for row in made["rows"]}
    assert values["bridge.txt"] == "1862"
    assert made["status"] == "done"
    assert (tmp_path / "t.csv").read_text().startswith("document,id,version,When was the bridge built?")
    code, out, said = folio(*table, "--resume", made["id"])
    assert (code, "bridge.txt" in out) == (0, True), said
    for wrong in (["Q", "--type", "2:date"], ["Q", "--type", "1:choice"], [], ["Q", "--resume", "x"]):
        assert folio(*table, *wrong)[0] == 2
    assert folio(*table, "--resume", "nosuch")[0] == 1
