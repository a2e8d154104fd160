"""Modes that search under way, over the real engine: speculation changes no token, shows what is verified, fails in
words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from retrieval.iterative.retrievers import SnapshotRetriever
from retrieval.library import Library
from service.answering.answer import NOTHING_FOUND, Answer, AnswerFailed, Event, collect
from service.answering.question import Iterative, Question
from service.answering.stride_writers import sentence_end
from service.engine.params import SamplingParams
from service.errors import FolioError, NotFound
from service.runtime import Runtime
from service.settings import load_settings

Ask = Callable[..., Any]
QUESTION = "Who built the bridge at Hampton, and what stands behind the church?"


@pytest.fixture
def ask(home: Path, tiny_model: Path) -> Ask:
    """Answers of the tiny random model to several sets of options, by one runtime; `raw` gives the events."""

    def run(*options: Iterative, raw: bool = False, engine: Any = None, text: str = QUESTION, **how: Any) -> list[Any]:
        mode = how.pop("mode", "iterative")
        params = SamplingParams(
            max_tokens=how.pop("max_tokens", 40), ignore_eos=True, temperature=how.pop("temperature", 0.0), seed=3
        )

        async def go() -> list[Any]:
            runtime = Runtime(load_settings(home=home, model=str(tiny_model)), engine=engine)
            await runtime.start()
            try:
                await runtime.ended.wait()
                answers = []
                for one in options:
                    question = Question(question=text, mode=mode, iterative=one, **how)
                    stream = runtime.answerer.answer(question, params)
                    answers.append([event async for event in stream] if raw else await collect(stream))
                return answers
            finally:
                await runtime.stop()

        return asyncio.run(go())

    return run


@pytest.mark.parametrize(("retriever", "temperature"), [("hybrid", 0.0), ("dense", 1.0), ("sparse", 1.0)])
def test_speculation_changes_nothing_but_the_time(ask: Ask, retriever: Any, temperature: float) -> None:
    variants = [
        Iterative(speculate=False, retriever=retriever),
        Iterative(retriever=retriever),
        Iterative(retriever=retriever, stride=3, overlap=False, prefetch=1),
    ]
    plain, os3, fixed = ask(*variants, temperature=temperature)
    assert plain.mode == "iterative"
    assert plain.answer == os3.answer == fixed.answer
    assert plain.stats["output_tokens"] == os3.stats["output_tokens"] == 40
    assert [hit["chunk_id"] for hit in plain.results] == [hit["chunk_id"] for hit in os3.results]
    figures = fixed.stats["iterative"]
    assert figures["guesses"] >= figures["accepted"]
    assert 1 < figures["mean_stride"] <= 3
    assert figures["amdahl_ceiling"] >= 1
    assert {"acceptance", "a_ms", "b_ms", "gamma", "retrieval_share"} <= set(figures)
    assert plain.stats["iterative"]["searches"] == plain.stats["iterative"]["strides"] == 10


@pytest.mark.parametrize(("mode", "temperature"), [("flare", 1.0), ("iter-retgen", 0.0)])
def test_speculation_changes_nothing_in_the_other_modes(ask: Ask, mode: str, temperature: float) -> None:
    variants = [
        Iterative(speculate=False, theta=0.5),
        Iterative(theta=0.5),
        Iterative(theta=0.5, stride=3, overlap=False, prefetch=1),
    ]
    plain, os3, fixed = ask(*variants, mode=mode, temperature=temperature)
    assert plain.mode == mode
    assert plain.answer == os3.answer == fixed.answer
    assert plain.stats["output_tokens"] == os3.stats["output_tokens"] == 40
    assert [hit["chunk_id"] for hit in plain.results] == [hit["chunk_id"] for hit in os3.results]
    figures = plain.stats["iterative"]
    assert figures["strides"] == figures["searches"] > 1
    if mode == "iter-retgen":
        assert figures["strides"] <= 3


def test_flare_searches_only_before_sentences_with_an_unlikely_token(ask: Ask) -> None:
    sure, unsure = ask(Iterative(theta=0.0), Iterative(theta=1.0), mode="flare", max_tokens=150)
    assert sure.stats["iterative"]["searches"] == 1
    assert unsure.stats["iterative"]["searches"] > 1


def test_where_a_sentence_ends() -> None:
    pieces = ["It", " is", " 3", ".", "5", " m", ".", '"', " Then", "\n", "ok"]
    assert sentence_end(pieces, 0, False) == 8
    assert sentence_end(pieces[:8], 0, False) is None
    assert sentence_end(pieces[:8], 0, True) == 8
    assert sentence_end(pieces, 8, False) == 10
    assert sentence_end(["\n", "a", "。", "b"], 0, False) == 3
    assert sentence_end(["x"] * 100, 20, False) == 84
    assert sentence_end(pieces, len(pieces), True) is None


def test_strides_over_one_passage_reuse_its_keys_and_values(ask: Ask) -> None:
    (answer,) = ask(Iterative(speculate=False), max_tokens=64)
    assert answer.stats["iterative"]["reused_share"] > 0.5
    assert 0 < answer.stats["cached_tokens"] < answer.stats["prompt_tokens"]


def test_events_come_in_order_and_only_verified_text_is_shown(ask: Ask) -> None:
    events: list[Event]
    (events,) = ask(Iterative(stride=4), raw=True)
    kinds = [event.type for event in events]
    assert kinds[0] == "search_results"
    assert kinds[-2:] == ["stats", "done"]
    shown = "".join(event.data["text"] for event in events if event.type == "message")
    assert shown.strip() == events[-1].data["answer"]
    assert events[-1].data["finish_reason"] == "length"


def test_a_quotation_is_cited_from_the_passage_it_stands_in(ask: Ask, make_scripted: Any) -> None:
    whole = 'It says "The bridge at Hampton was built by Ada Miller in 1862." [1]'

    def reply(prompt: str) -> str:
        return whole.removeprefix(prompt.rpartition("assistant\n")[2])

    (answer,) = ask(Iterative(), engine=make_scripted(reply), max_tokens=100)
    assert answer.answer == whole
    assert [(c["verified"], c["support"], c["claim"]) for c in answer.citations] == [(True, "verbatim", 0)]
    assert answer.finish_reason == "stop"


def test_nothing_to_answer_from(ask: Ask, home: Path) -> None:
    with Library.open(home) as library:
        for document in library.documents():
            library.delete(document.id)
    (answer,) = ask(Iterative())
    assert (answer.answer, answer.finish_reason) == (NOTHING_FOUND, "no_evidence")
    with pytest.raises(NotFound):
        ask(Iterative(), collection="elsewhere")


@pytest.mark.parametrize("speculate", [True, False])
def test_an_answer_ends_on_the_generation_it_began_with(
    ask: Ask, home: Path, monkeypatch: pytest.MonkeyPatch, speculate: bool
) -> None:
    options = Iterative(speculate=speculate, k=2)
    before: Answer = ask(options)[0]
    search, added = SnapshotRetriever.search, []

    def and_then_ingest(self: SnapshotRetriever, *arguments: Any) -> Any:
        found = search(self, *arguments)
        if not added:
            added.append(home.parent / "new.txt")
            added[0].write_text(QUESTION + before.answer)
            with Library.open(home) as other:
                other.ingest(added)
                other.build_index()
        return found

    monkeypatch.setattr(SnapshotRetriever, "search", and_then_ingest)
    assert ask(options)[0].answer == before.answer
    assert added
    monkeypatch.undo()
    assert "new.txt" in {hit["name"] for hit in ask(options)[0].results}


@pytest.mark.parametrize("failures", [1, 5])
def test_a_failing_retriever_is_tried_twice(ask: Ask, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    """Once is forgiven and told in the statistics; then the answer ends in an error, and what was shown stays."""
    (whole,) = ask(Iterative())
    search, calls = SnapshotRetriever.search, []

    def failing(self: SnapshotRetriever, *arguments: Any) -> Any:
        calls.append(1)
        if 3 <= len(calls) < 3 + failures:
            raise OSError("the disk is gone")
        return search(self, *arguments)

    monkeypatch.setattr(SnapshotRetriever, "search", failing)
    (events,) = ask(Iterative(), raw=True)
    shown = "".join(event.data["text"] for event in events if event.type == "message")
    if failures == 1:
        assert shown.strip() == whole.answer
        assert next(e for e in events if e.type == "stats").data["iterative"]["retries"] >= 1
        return
    assert [event.type for event in events][-2:] == ["error", "done"]
    assert "the disk is gone" in events[-2].data["detail"]
    assert events[-2].data["status"] == 503
    assert shown
    assert whole.answer.startswith(shown.strip())
    calls.clear()
    with pytest.raises(AnswerFailed, match="failed twice"):
        ask(Iterative())


@pytest.mark.parametrize("option", ["k", "stride", "query_tokens", "prefetch"])
def test_options_must_be_above_zero(option: str) -> None:
    with pytest.raises(ValidationError, match=f"{option}\n"):
        Iterative(**{option: 0})


def test_a_query_longer_than_the_encoder(ask: Ask) -> None:
    with pytest.raises(FolioError, match="Queries of 300 tokens are longer than the embedding model reads"):
        ask(Iterative(query_tokens=300))
    (answer,) = ask(Iterative(query_tokens=254), text="qx!" * 400, max_tokens=4)
    assert answer.stats["iterative"]["query_tokens_cut"] >= 0
    (answer,) = ask(Iterative(query_tokens=300, retriever="sparse"), max_tokens=4)
    assert answer.stats["iterative"]["query_tokens_cut"] == 0


def test_the_command_line_and_its_equal(home: Path, tiny_model: Path, folio: Any) -> None:
    def asked(*more: object) -> dict[str, Any]:
        code, out, err = folio("--home", home, "ask", QUESTION, "--mode", "iterative", "--model", tiny_model, *more)
        assert code == 0, err
        return json.loads(out)

    common = ("--json", "--max-tokens", 24)
    fast, slow = asked(*common), asked(*common, "--speculate", "off")
    assert fast["answer"] == slow["answer"]
    assert fast["stats"]["iterative"]["speculate"]
    assert not slow["stats"]["iterative"]["speculate"]
    code, _, err = folio("--home", home, "ask", QUESTION, "--mode", "iterative", "--k", 0)
    assert code == 2
    assert "--k must be at least 1, not 0" in err
