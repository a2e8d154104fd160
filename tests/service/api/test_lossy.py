"""Lossy answers over HTTP: named, told, counted, compared; and refused where they make no sense."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

FIRST = "The mill stands by the river. " * 12
SECOND = "The ferry leaves at noon from the pier. " * 12


@pytest.fixture(scope="module")
def lossy(start_service: Callable[..., Any], make_engine: Callable[[], Any]) -> Any:
    """A service that compares every lossy answer, with two documents."""
    engine = make_engine()
    engine.canary.share = 1.0
    service = start_service(engine=engine)
    for name, text in (("mill.txt", FIRST), ("ferry.txt", SECOND)):
        service.ingest(name, text.encode())
    return service


def ask(service: Any, question: str, **more: Any) -> Any:
    body = {"question": question, "mode": "retrieval", "max_tokens": 6, "refuse_below": 0, "drafter": "none", **more}
    return service.client.post("/v1/answer", json=body)


def test_a_blended_answer_says_so_and_finds_its_passages_again(lossy: Any) -> None:
    first = ask(lossy, "When does the ferry leave?", attention="blend:first=4").json()["stats"]
    again = ask(lossy, "Where is the mill by the river?", attention="blend:first=4").json()["stats"]
    assert first["attention"] == again["attention"] == "blend:first=4"
    assert first["lossy"] is True
    assert first["passage_hits"] == 0
    assert again["passage_hits"] == again["passage_tokens"] > again["filled_tokens"] > 100
    exact = ask(lossy, "When does the ferry leave?", attention="dense").json()["stats"]
    assert exact["lossy"] is False
    assert "passage_hits" not in exact
    assert 'folio:passage_hits_total{model_name="' in lossy.client.get("/metrics").text


def test_where_there_are_no_passages_it_is_refused(lossy: Any) -> None:
    model = lossy.client.get("/v1/models").json()["data"][0]["id"]
    chat = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "attention": "blend"}
    for refused in (
        lossy.client.post("/v1/chat/completions", json=chat),
        ask(lossy, "When?", attention="blend", mode="iterative"),
    ):
        assert refused.status_code == 400
        assert "passages" in refused.text


def test_the_canary_shows_what_it_found_and_is_reset_by_an_administrator(lossy: Any) -> None:
    assert ask(lossy, "When does the ferry leave?", attention="blend:first=0").status_code == 200
    deadline = time.monotonic() + 30
    while "blend:first=0" not in (found := lossy.client.get("/v1/canary").json())["policies"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert found["share"] == 1.0
    policy = found["policies"]["blend:first=0"]
    assert policy["answers"] == 1
    assert 0 <= policy["agreeing_tokens"] <= policy["tokens"] <= 6
    assert 'policy="blend:first=0"' in lossy.client.get("/metrics").text

    engine = lossy.runtime.engine
    [by_policy] = engine.run(lambda own: list(own.canary._compared.values())).result()
    by_policy["blend:first=0"].withdrawn = 0.5
    refused = ask(lossy, "When?", attention="blend:first=0")
    assert refused.status_code == 400
    assert "was withdrawn" in refused.json()["detail"]

    keys = lossy.runtime.keys
    key, secret = keys.create("ann", "laptop", ["read", "metrics"])
    boss, admin = keys.create("boss", "laptop", ["admin"])
    try:
        heads = {"Authorization": f"Bearer {secret}"}
        assert lossy.client.get("/v1/canary", headers=heads).status_code == 200
        assert lossy.client.delete("/v1/canary", headers=heads).status_code == 403
        done = lossy.client.delete("/v1/canary", headers={"Authorization": f"Bearer {admin}"})
        assert done.json() == {"policies": ["blend:first=0"]}
    finally:
        keys.revoke(key.id)
        keys.revoke(boss.id)
    assert engine.run(lambda own: own.canary.compared).result() == {}
