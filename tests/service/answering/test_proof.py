"""What stands behind a refusal: what was read whole, what was searched for, and why nothing carried."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retrieval.library import Library
from service.answering.answer import Answer, collect
from service.answering.question import Question
from service.engine.params import SamplingParams
from service.runtime import Runtime
from service.settings import load_settings

from .test_refusing import Ranker


@pytest.fixture
def ask(home: Path, tiny_model: Path, make_scripted: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    def run(reply: str = "The documents do not say.", bound: float = 0.5, **how: Any) -> Answer:
        monkeypatch.setattr(Library, "ranker", Ranker(bound))

        async def go() -> Answer:
            runtime = Runtime(load_settings(home=home, model=str(tiny_model)), engine=make_scripted(lambda _: reply))
            await runtime.start()
            try:
                await runtime.ended.wait()
                question = Question(**{"question": "Where do the trees of the valley stand?", **how})
                return await collect(runtime.answerer.answer(question, SamplingParams(), "local"))
            finally:
                await runtime.stop()

        return asyncio.run(go())

    return run


def test_an_answer_has_none(ask: Callable[..., Answer]) -> None:
    assert ask("The oldest oak stands behind the church.", mode="long").proof is None


def test_a_refusal_after_reading_names_the_documents_and_the_nearest_passages(ask: Callable[..., Answer]) -> None:
    proof = ask(mode="long").proof
    assert proof is not None
    assert {one["name"] for one in proof["read_whole"]} == {"bridge.txt", "trees.md"}
    assert all(one["chars"] > 100 for one in proof["read_whole"])
    [search] = proof["searches"]
    assert (search["query"], search["mode"]) == ("Where do the trees of the valley stand?", "hybrid")
    assert search["passages"] == len(proof["considered"]) == 2
    surest = proof["considered"][0]
    assert surest["name"] == "bridge.txt", "the one that the ranker finds surest"
    assert "Ada Miller" in surest["sentence"]
    assert surest["why"] == "the model read it and found no answer in it", "which the ranker would have let pass"
    assert proof["considered"][1]["why"] == ("its surest sentence answers with a probability of 0.10; 0.50 is needed")
    assert proof["wider"] is None, "everything was read"


def test_a_search_that_found_nothing_sure_says_how_far_it_was(ask: Callable[..., Answer]) -> None:
    answer = ask(mode="retrieval", bound=0.9)
    assert answer.finish_reason == "no_evidence"
    assert answer.proof is not None
    assert [one["probability"] for one in answer.proof["considered"]] == [0.8, 0.1]
    assert all(one["needed"] == 0.9 for one in answer.proof["considered"])
    assert answer.proof["wider"] == {"mode": "retrieval", "wider": True}


def test_a_wider_search_asks_the_model_and_takes_more(ask: Callable[..., Answer]) -> None:
    narrow, wide = (ask(mode="retrieval", bound=0.9, passages=1, wider=on) for on in (False, True))
    assert (len(narrow.results), len(wide.results)) == (1, 2)
    assert wide.finish_reason == "stop"
    assert wide.proof is not None
    assert wide.proof["wider"] is None


def test_a_question_of_one_document_can_be_asked_of_all(ask: Callable[..., Answer], home: Path) -> None:
    with Library.open(home) as library:
        [document] = [one.id for one in library.documents() if one.name == "trees.md"]
    proof = ask(mode="long", documents=[document]).proof
    assert proof is not None
    assert [one["document"] for one in proof["considered"]] == [document], "nothing else was read"
    assert proof["wider"] == {"mode": "retrieval", "wider": True, "documents": [], "collection": None}
    Question(**{"question": "And all?", **proof["wider"]})


def test_the_command_line_shows_it(folio: Callable[..., Any], home: Path) -> None:
    code, _, said = folio("--home", home, "ask", "What does a submarine cost?", "--mode", "retrieval")
    assert code == 0
    assert "Searched (hybrid): What does a submarine cost?; 2 passages" in said
    assert "is needed" in said
    assert "To search wider: --mode retrieval --wider." in said
