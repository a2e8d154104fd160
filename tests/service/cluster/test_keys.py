"""From a request to the key of its pages."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cluster.keys import PREFIX_CHARS, PREFIX_IDS, affinity_key


def key(path: str, body: Any, **headers: str) -> str | None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return affinity_key("POST", path, named, json.dumps(body).encode())


def test_questions_about_the_same_documents_share_a_key() -> None:
    first = key("/v1/answer", {"question": "Who?", "documents": ["b", "a"]})
    assert first == key("/v1/answer", {"question": "When?", "documents": ["a", "b", "b"], "stream": True})
    assert first != key("/v1/answer", {"question": "Who?", "documents": ["a"]})
    chat = {"messages": [{"role": "user", "content": "Who?"}], "folio": {"documents": ["a", "b"]}}
    assert first == key("/v1/chat/completions", chat), "one replica, whichever route the question takes"


def test_owners_do_not_share_a_key() -> None:
    body = {"question": "Who?", "collection": "papers"}
    assert key("/v1/answer", body, authorization="Bearer a") != key("/v1/answer", body, authorization="Bearer b")


def test_prompts_that_begin_alike_share_a_key() -> None:
    book = "word " * PREFIX_CHARS
    assert key("/v1/completions", {"prompt": book + "one"}) == key("/v1/completions", {"prompt": book + "two"})
    assert key("/v1/completions", {"prompt": "x" + book}) != key("/v1/completions", {"prompt": book})
    ids = list(range(PREFIX_IDS))
    assert key("/v1/completions", {"prompt": [*ids, 7]}) == key("/v1/completions", {"prompt": [[*ids, 8], [1]]})
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": book}]
    later = [*turns, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why?"}]
    assert key("/v1/chat/completions", {"messages": turns}) == key("/v1/chat/completions", {"messages": later})


def test_a_conversation_over_passages_keeps_its_key() -> None:
    """Its prompts share the earlier turns; which passages they hold is not known yet."""
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]
    asked = {"mode": "retrieval", "question": "When?", "history": turns}
    later = [*turns, {"role": "user", "content": "When?"}, {"role": "assistant", "content": "In 1862."}]
    first = key("/v1/answer", asked)
    assert first == key("/v1/answer", {**asked, "question": "Where?", "history": later}) is not None
    assert first != key("/v1/answer", {**asked, "history": [{**turns[0], "content": "What?"}, turns[1]]})
    system = {"role": "system", "content": "Be brief."}
    chat = {"messages": [system, *later, {"role": "user", "content": "Where?"}], "folio": {"mode": "retrieval"}}
    assert first == key("/v1/chat/completions", chat)
    assert first != key("/v1/answer", asked, authorization="Bearer b")


def test_a_hint_of_the_client_goes_first() -> None:
    one, two = ({"prompt": text, "prompt_cache_key": "session 7"} for text in ("this", "that"))
    assert key("/v1/completions", one) == key("/v1/completions", two) is not None


def test_a_repeated_request_meets_its_first_answer() -> None:
    one = key("/v1/answer", {"question": "Who?"}, idempotency_key="7")
    assert one == key("/v1/answer", {"question": "Else?"}, idempotency_key="7") is not None
    assert one != key("/v1/answer", {"question": "Who?"}, idempotency_key="8")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/search", {"query": "bridge"}),
        ("/v1/answer", {"question": "Who?", "mode": "retrieval"}),
        ("/v1/answer", {"question": "Who?", "mode": "retrieval", "history": "none"}),
        ("/v1/completions", {"prompt": ""}),
        ("/v1/completions", {"prompt": []}),
        ("/v1/chat/completions", {"messages": "none"}),
        ("/v1/answer", ["no object"]),
    ],
)
def test_any_replica_will_do(path: str, body: Any) -> None:
    assert key(path, body) is None


def test_reading_has_no_key() -> None:
    assert affinity_key("GET", "/v1/answer", {}, b"{}") is None


@given(st.sampled_from(["/v1/answer", "/v1/completions", "/v1/chat/completions"]), st.binary(max_size=200))
def test_any_body_is_borne(path: str, body: bytes) -> None:
    affinity_key("POST", path, {}, body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(["documents", "mode", "collection", "folio", "messages", "prompt", "prompt_cache_key"])


@given(st.sampled_from(["/v1/answer", "/v1/completions", "/v1/chat/completions"]), st.dictionaries(fields, json_values))
def test_any_shape_is_borne(path: str, body: dict[str, Any]) -> None:
    key(path, body)
