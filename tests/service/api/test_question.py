"""A question as every front end reads it: the same limits, the same refusals, each naming what the user wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from service.answering.question import (
    MAX_HISTORY_BYTES,
    MAX_TURNS,
    AnswerOptions,
    Iterative,
    Knn,
    Question,
    Sampling,
    Turn,
    newest,
)

WRONG: list[tuple[dict[str, Any], tuple[str, ...], str, str]] = [
    # of a question; the same on the command line; the field and the flag; why
    (
        {"mode": "nonsense"},
        ("--mode", "nonsense"),
        "mode --mode",
        "must be 'auto', 'long', 'retrieval', 'iterative', 'flare' or 'iter-retgen'",
    ),
    ({"iterative": {"k": 0}}, ("--k", "0"), "iterative.k --k", "must be at least 1, not 0"),
    ({"iterative": {"retriever": "x"}}, ("--retriever", "x"), "iterative.retriever --retriever", "not 'x'"),
    ({"iterative": {"stride": 65}}, ("--stride", "65"), "iterative.stride --stride", "must be at most 64, not 65"),
    ({"knn": {"k": 0}}, ("--knn", "--knn-k", "0"), "knn.k --knn-k", "must be at least 1, not 0"),
    ({"knn": {"weight": 1.5}}, ("--knn", "--knn-weight", "1.5"), "knn.weight --knn-weight", "must be at most 1"),
    ({"passages": 101}, ("--passages", "101"), "passages --passages", "must be at most 100, not 101"),
    ({"documents": ["a/b"]}, ("--document", "a/b"), "documents.0 --document", "should match pattern"),
    ({"collection": ""}, ("--collection", ""), "collection --collection", "at least 1 character"),
]


@pytest.mark.parametrize(("fields", "flags", "names", "why"), WRONG, ids=lambda value: str(value)[:30])
def test_one_refusal_for_every_front_end(
    folio: Callable[..., Any],
    tmp_path: Any,
    service: Any,
    fields: dict[str, Any],
    flags: tuple[str, ...],
    names: str,
    why: str,
) -> None:
    field, flag = names.split()
    refused = service.client.post("/v1/answer", json={"question": "Who?", **fields})
    assert refused.status_code == 422
    (fault,) = refused.json()["errors"]
    assert fault["param"] == field
    assert why in fault["reason"]
    asked = {"model": "x", "messages": [{"role": "user", "content": "Who?"}], "folio": fields}
    error = service.client.post("/v1/chat/completions", json=asked).json()["error"]
    assert error["param"] == f"folio.{field}"
    code, _, said = folio("--home", tmp_path, "ask", "Who?", *flags)
    assert code == 2
    sentences = [refused.json()["detail"], error["message"], said.strip()]
    assert sentences == [sentences[0], f"folio.{sentences[0]}", f"folio: {sentences[0].replace(field, flag, 1)}"]


@pytest.mark.parametrize("model", [Iterative, Knn, AnswerOptions, Sampling])
def test_unknown_fields_are_refused(model: Any) -> None:
    with pytest.raises(ValidationError, match="what"):
        model(what=1)


def test_every_field_says_what_it_means() -> None:
    for model in (Iterative, Knn, Question, Sampling):
        for name, described in model.model_json_schema()["properties"].items():
            inner = described.get("anyOf", [described])
            assert "description" in described or any("description" in one for one in inner), (model, name)


def test_a_conversation_goes_into_the_prompt(start_service: Callable[..., Any], make_scripted: Any) -> None:
    prompts: list[str] = []
    service = start_service(engine=make_scripted(lambda prompt: prompts.append(prompt) or "Seven."))
    service.ingest("bridge.txt", b"The bridge has seven arches.")
    history = [{"role": "user", "content": "Of what bridge?"}, {"role": "assistant", "content": "Of Hampton."}]
    options = {"mode": "retrieval"}
    asked = {"question": "How many arches?", "history": history, **options}
    assert service.client.post("/v1/answer", json=asked).json()["answer"] == "Seven."
    messages = [*history, {"role": "user", "content": "How many arches?"}]
    chat = {"model": service.runtime.model_name, "messages": messages, "folio": options}
    assert service.client.post("/v1/chat/completions", json=chat).status_code == 200
    assert "Of what bridge?" in prompts[0]
    assert prompts[0] == prompts[1]
    assert {"bridge", "Hampton"} <= set(service.client.post("/v1/answer", json=asked).json()["query"].split())
    bad = service.client.post("/v1/answer", json={**asked, "history": [{"role": "system", "content": "x"}]})
    assert (bad.status_code, bad.json()["errors"][0]["param"]) == (422, "history.0.role")


LONG = "x" * (MAX_HISTORY_BYTES // 2)
BAD_HISTORY: list[tuple[Any, str, str]] = [
    (
        [{"role": "user", "content": LONG}, {"role": "assistant", "content": LONG + "y"}],
        "history",
        "leave out the oldest",
    ),
    ([{"role": "user", "content": "é" * (MAX_HISTORY_BYTES // 2 + 1)}], "history", "524,290 bytes, over 524,288"),
    ([{"role": "user", "content": "x"}] * (MAX_TURNS + 1), "history", "at most 1000 items"),
    ([{"role": "user"}], "history.0.content", "is missing"),
    ([{"role": "user", "content": "x", "name": "y"}], "history.0.name", "not known here"),
    ([{"role": "user", "content": "\ud83d"}], "history.0.content", "surrogate"),
    ("earlier", "history", "must be a valid"),
]


@pytest.mark.parametrize(("history", "param", "why"), BAD_HISTORY, ids=lambda value: str(value)[:30])
def test_a_history_is_bounded_and_refused_in_words(service: Any, history: Any, param: str, why: str) -> None:
    asked = json.dumps({"question": "Who?", "history": history})
    refused = service.client.post("/v1/answer", content=asked, headers={"content-type": "application/json"})
    assert refused.status_code == 422
    (fault,) = refused.json()["errors"]
    assert fault["param"] == param
    assert why in fault["reason"]
    assert len(refused.content) < 2000, "the words are not sent back"


def test_a_history_over_the_limit_is_named_as_the_messages_that_it_came_in(service: Any) -> None:
    turns = [{"role": role, "content": LONG + "y"} for role in ("user", "assistant")]
    chat = {
        "model": service.runtime.model_name,
        "messages": [*turns, {"role": "user", "content": "Who?"}],
        "folio": {"mode": "retrieval"},
    }
    error = service.client.post("/v1/chat/completions", json=chat).json()["error"]
    assert error["param"] == "messages"
    assert "bytes" in error["message"]


def test_the_newest_turns_are_those_that_a_question_may_bring() -> None:
    said = [Turn(role=role, content=f"{number}") for number in range(MAX_TURNS) for role in ("user", "assistant")]
    kept = newest(said)
    assert (kept[0].role, kept[-1].content, len(kept)) == ("user", str(MAX_TURNS - 1), MAX_TURNS)
    long = [Turn(role="user", content=LONG), Turn(role="assistant", content="é" * (len(LONG) // 2)), *said[:2]]
    assert newest(long) == said[:2]
    assert newest(long[:2]) == long[:2]
    assert Question.model_validate({"question": "?", "history": newest(long)}).history == tuple(said[:2])


def test_a_datastore_is_asked_for_in_every_way_of_asking(service: Any) -> None:
    """And refused alike where there is none."""
    service.ingest("bridge.txt", b"The bridge has seven arches.")
    asked = {"question": "How many?", "knn": {"k": 8}}
    assert "folio index build --knn" in service.client.post("/v1/answer", json=asked).json()["detail"]
    chat = {
        "model": service.runtime.model_name,
        "messages": [{"role": "user", "content": "How many?"}],
        "folio": {"knn": {"k": 8}},
    }
    answer = service.client.post("/v1/chat/completions", json=chat)
    assert (answer.status_code, "folio index build --knn" in answer.text) == (404, True)
