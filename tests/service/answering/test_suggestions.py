"""Suggested questions: made of sentences by rule, and kept only where the answer is verified and cites the sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from service.answering.suggestions import candidates

from ..api.conftest import make_engine, start_service  # noqa: F401

TEXT = (
    "A page is a block of sixty tokens. It is the unit of the cache. The bridge at Hampton was built by Ada Miller in "
    "1862. The bridge at Hampton has seven arches. Limes were planted along the road in 1903. There is a mill. In this "
    "chapter nothing is a surprise. The mill was sold by Tom Reed. Visitors may cross."
)


def test_questions_are_of_sentences_that_define_date_name_or_count() -> None:
    found = candidates(TEXT)
    assert [one.question for one in found] == [
        "What is a page?",
        "When was the bridge at Hampton built?",
        "Who built the bridge at Hampton?",
        "How many arches does the bridge at Hampton have?",
        "When were Limes planted?",
        "Who sold the mill?",
    ]
    assert all(TEXT[one.start : one.end].strip().endswith(".") for one in found)


@pytest.mark.parametrize("text", ["", "Die Brücke ist alt. Das Haus wurde 1862 gebaut.", "x" * 5000])
def test_a_text_without_such_sentences_has_none(text: str) -> None:
    assert candidates(text) == []


def test_only_what_is_answered_with_its_own_sentence_is_suggested(
    start_service: Callable[..., Any],  # noqa: F811
    make_scripted: Any,
) -> None:
    def reply(prompt: str) -> str:
        question = prompt.rpartition("Question")[2] + prompt[-400:]
        if "Who built" in question:
            return "The bridge at Hampton was built by Ada Miller in 1862."
        if "When was the bridge" in question:  # supported in part
            return "The bridge at Hampton was built by Ada Miller in 1862. Unicorns cross it."
        if "When were Limes" in question:  # what another sentence says
            return "The bridge at Hampton has seven arches."
        if "How many" in question:
            return "The bridge at Hampton has nine arches."  # which the document does not say
        return "The documents do not say."

    service = start_service(engine=make_scripted(reply))
    document = service.ingest("bridge.txt", TEXT.encode())["id"]
    found = service.client.get(f"/v1/documents/{document}/questions").json()["questions"]
    assert [one["question"] for one in found] == ["Who built the bridge at Hampton?"]
    assert found[0]["citations"][0]["verified"]
    assert service.client.get("/v1/documents/nosuch/questions").status_code == 404
