"""From question to checked citations: modes and their reasons, events, failures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retrieval.errors import NotFound as RetrievalNotFound
from retrieval.library import Library
from retrieval.types import Upload
from service.answering.answer import NOTHING_FOUND, Answer, AnswerFailed, Event, collect
from service.answering.question import Question
from service.answering.support.attribution import NO_SUPPORT, OTHER_LANGUAGE, UNFINISHED
from service.engine.params import SamplingParams
from service.errors import InvalidRequest, NotFound, PromptTooLong
from service.runtime import Runtime
from service.settings import load_settings

Ask = Callable[..., Any]


@pytest.fixture
def ask(home: Path, scripted: Any, tiny_model: Path) -> Ask:
    """Ask through the real parts over a scripted engine; `raw` gives the events."""

    def run(
        text: str,
        raw: bool = False,
        engine: Any = None,
        flags: dict[str, Any] | None = None,
        owner: str = "local",
        **how: Any,
    ) -> Any:
        async def go() -> Any:
            options = {"home": home, "model": str(tiny_model)} | (flags or {})
            runtime = Runtime(load_settings(**options), engine=engine or scripted)
            await runtime.start()
            try:
                await runtime.ended.wait()
                question = Question(question=text, **{"refuse_below": 0, **how})
                stream = runtime.answerer.answer(question, SamplingParams(max_tokens=400), owner)
                return [event async for event in stream] if raw else await collect(stream)
            finally:
                await runtime.stop()

        return asyncio.run(go())

    return run


def documents(home: Path) -> dict[str, str]:
    with Library.open(home) as library:
        return {document.name: document.id for document in library.documents()}


def test_retrieval_cites_the_stored_text(ask: Ask, home: Path) -> None:
    answer: Answer = ask("Who built the bridge at Hampton?", mode="retrieval")
    assert (answer.mode, answer.mode_reason) == ("retrieval", "asked for")
    citation = answer.citations[0]
    assert citation["verified"]
    assert citation["page"] == 1
    with Library.open(home) as library:
        stored = library.text(citation["document"], citation["start"], citation["end"])
    assert stored == citation["cited_text"]
    claim = answer.claims[citation["claim"]]
    assert answer.answer[claim["start"] : claim["end"]] == claim["text"]
    assert [claim["start"], claim["end"]] == [citation["answer_start"], citation["answer_end"]]
    assert citation["support"] == claim["support"] != "none"
    assert [c["text"] for c in answer.claims if c["support"] == "none"] == ["Nobody else knows of any unicorns."]
    assert not answer.verified
    assert answer.note is None
    expected = {"prompt_tokens", "output_tokens", "ttft_s", "decode_tokens_per_s", "retrieval_ms"}
    assert expected <= set(answer.stats)
    assert answer.stats["retrieval_ms"] > 0


def test_long_reads_the_whole_document(ask: Ask, home: Path) -> None:
    document = documents(home)["trees.md"]
    answer: Answer = ask("What of the oak?", mode="long", documents=(document,))
    assert answer.mode == "long"
    assert answer.mode_reason.startswith("fits: ")
    assert answer.citations[0]["document"] == document
    assert answer.citations[0]["verified"]
    assert answer.stats["retrieval_ms"] == 0


def test_auto_reads_whole_what_fits_and_retrieves_what_does_not(ask: Ask) -> None:
    assert ask("Who built it?").mode == "long"
    small = ask("Who built the bridge?", flags={"long_tokens": 16})
    assert small.mode == "retrieval"
    assert "too long to read whole" in small.mode_reason
    assert "FOLIO_LONG_TOKENS" in small.mode_reason


@pytest.mark.parametrize("mode", ["long", "retrieval"])
def test_the_same_files_make_the_same_prompt_whatever_their_ids(
    ask: Ask, make_scripted: Any, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    prompts: list[str] = []
    listed: list[list[str]] = []
    for ids in (["a" * 12, "b" * 12], ["b" * 12, "a" * 12]):
        monkeypatch.setattr("retrieval.store.documents.new_id", iter(ids).__next__)
        with Library.open(tmp_path / ids[0]) as library:
            assert {result.id for result in library.ingest(files)} == set(ids)
        engine = make_scripted(lambda prompt: prompts.append(prompt) or "Seven.")
        answer = ask("How many arches has the bridge?", mode=mode, engine=engine, flags={"home": tmp_path / ids[0]})
        listed.append([result["name"] for result in answer.results])
    assert prompts[0] == prompts[1]
    assert listed[0] == listed[1]


def test_long_that_does_not_fit_is_refused_with_both_numbers(ask: Ask, make_scripted: Any) -> None:
    engine = make_scripted()
    engine.max_model_len = 500
    with pytest.raises(PromptTooLong, match=r"takes .* tokens; the model holds 100") as caught:
        ask("Who?", mode="long", engine=engine)
    assert caught.value.param == "mode"


def test_retrieval_drops_passages_that_do_not_fit(
    ask: Ask, make_scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "retrieval.ranking.ranker.SentenceRanker.knows", lambda *_: False
    )  # nothing is repeated beside it
    engine, asked = make_scripted(), "Tell me of bridge, mill, oak and limes."
    whole: Answer = ask(asked, mode="retrieval", engine=engine)
    engine.max_model_len = whole.stats["prompt_tokens"] + 400 - 1
    answer: Answer = ask(asked, mode="retrieval", engine=engine)
    assert len(answer.results) == 1
    assert "1 of 2 passages fit" in answer.mode_reason


def test_an_empty_library_says_so(ask: Ask, tmp_path: Path) -> None:
    events: list[Event] = ask("Anything?", raw=True, flags={"home": tmp_path / "empty"})
    assert [event.type for event in events] == ["search_results", "message", "stats", "done"]
    assert events[1].data["text"] == NOTHING_FOUND
    assert events[-1].data["finish_reason"] == "no_evidence"


def test_an_invented_quotation_has_no_support(ask: Ask, make_scripted: Any) -> None:
    engine = make_scripted(lambda _: '"The bridge has eight arches of grey stone" [1].')
    answer: Answer = ask("How many arches?", engine=engine)
    assert (answer.citations, answer.verified, answer.note) == ([], False, NO_SUPPORT)
    assert [claim["support"] for claim in answer.claims] == ["none"]


def test_prose_without_quotations_or_markers_is_attributed(ask: Ask, make_scripted: Any) -> None:
    engine = make_scripted(
        lambda _: "Ada Miller built the bridge at Hampton in 1862. The bridge has 7 arches of grey stone."
    )
    answer: Answer = ask("Who built it?", engine=engine)
    assert [claim["support"] for claim in answer.claims] == ["attributed", "attributed"]
    assert {citation["claim"] for citation in answer.citations} == {0, 1}
    assert answer.verified


def test_a_document_that_changes_meanwhile_verifies_nothing(ask: Ask, home: Path, make_scripted: Any) -> None:
    def reply(prompt: str) -> str:
        with Library.open(home) as library:
            for document in library.documents():
                library.delete(document.id)
        return "It has seven arches of grey stone."

    answer: Answer = ask("How many arches?", engine=make_scripted(reply))
    assert [(c["verified"], c["support"]) for c in answer.citations] == [(False, "none")]
    assert [claim["support"] for claim in answer.claims] == ["none"]
    assert not answer.verified


def test_what_cannot_be_supported_is_said_plainly(ask: Ask, make_scripted: Any) -> None:
    refused = ask("Who?", engine=make_scripted(lambda _: "The documents do not say."))
    assert (refused.claims, refused.verified, refused.note) == ([], False, None)
    german = ask("Wer?", engine=make_scripted(lambda _: "Die Brücke wurde von Ada Miller im Jahr 1862 gebaut."))
    assert ([c["support"] for c in german.claims], german.note) == (["none"], OTHER_LANGUAGE)
    cut = ask(
        "Who?",
        engine=make_scripted(lambda _: "It has seven arches of grey stone. The mill beside it belonged to " * 20),
    )
    assert (cut.finish_reason, cut.note, cut.verified) == ("length", UNFINISHED, False)
    assert cut.claims[-1]["support"] == "none"


def test_a_citation_comes_before_the_next_claim_is_written(ask: Ask, make_scripted: Any) -> None:
    text = (
        "It has seven arches of grey stone. "
        + "The mill beside it belonged to the parish. "
        + "Nobody knows why. " * 12
    )
    events = ask("Who?", raw=True, engine=make_scripted(lambda _: text.strip(), pause_s=0.02))
    types = [event.type for event in events]
    assert types.index("citation") < len(types) - 1 - types[::-1].index("message")


def test_events_come_in_order(ask: Ask) -> None:
    types = [event.type for event in ask("Who built the bridge?", raw=True)]
    assert types[0] == "search_results"
    assert types[-2:] == ["stats", "done"]
    assert set(types) == {"search_results", "message", "citation", "stats", "done"}
    assert types.index("message") < types.index("citation")


def test_messages_add_up_to_the_answer(ask: Ask) -> None:
    events = ask("Who built the bridge?", raw=True)
    assert "".join(e.data["text"] for e in events if e.type == "message") == events[-1].data["answer"]


def test_a_failure_in_mid_answer_is_an_event(ask: Ask, make_scripted: Any) -> None:
    engine = make_scripted()
    engine.failure = RuntimeError("secret internals")
    events = ask("Who?", raw=True, engine=engine)
    assert [event.type for event in events] == ["search_results", "error", "done"]
    assert "secret" not in str(events)
    engine = make_scripted()
    engine.failure = RuntimeError("x")
    with pytest.raises(AnswerFailed):
        ask("Who?", engine=engine)


@pytest.mark.parametrize("how", [{"documents": ("nope",)}, {"collection": "nope"}])
@pytest.mark.parametrize("mode", ["auto", "long", "retrieval", "iterative"])
def test_what_is_not_there_is_refused_before_any_work(
    ask: Ask, how: dict[str, Any], mode: Any, monkeypatch: Any
) -> None:
    for method in ("search", "retriever", "text"):
        monkeypatch.setattr(Library, method, None)
    with pytest.raises((NotFound, RetrievalNotFound), match="nope"):
        ask("Who?", mode=mode, **how)


def test_a_document_that_cannot_be_read_is_refused(ask: Ask, home: Path) -> None:
    with Library.open(home) as library:
        (failed,) = library.ingest([Upload("cut.pdf", b"%PDF-1.4 cut")])
    with pytest.raises(InvalidRequest, match=r"cut\.pdf cannot be read") as caught:
        ask("Who?", documents=(failed.id,))
    assert caught.value.param == "documents"


@pytest.mark.parametrize(
    ("drafter", "opened"), [("suffix", 0), ("none", 0), ("goodput", 0), ("auto", 1), ("datastore", 1), ("rag", 0)]
)
def test_the_token_store_is_opened_for_drafters_that_draw_on_it(
    ask: Ask, drafter: str, opened: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Library, "token_store", lambda _, owner: asked.append(owner))
    ask("Who built the bridge?", flags={"drafter": drafter})
    assert asked == ["local"] * opened


@pytest.mark.parametrize(("drafter", "wanted"), [("suffix", False), ("rag", True), ("overlap:inner=rag", True)])
def test_a_second_prompt_is_made_for_drafters_that_read_passages(
    ask: Ask, scripted: Any, drafter: str, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    add = scripted.add_request
    monkeypatch.setattr(scripted, "add_request", lambda *request: given.append(request[3]) or add(*request))
    assert ask("Who built the bridge?", mode="long", flags={"drafter": drafter}).mode == "long"
    assert (given[0].prompt is not None) == wanted


def test_the_second_prompt_keeps_to_its_budget_and_its_threshold(
    ask: Ask, scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    add = scripted.add_request
    monkeypatch.setattr(scripted, "add_request", lambda *request: given.append(request[3]) or add(*request))

    def shorter(options: str) -> str | None:
        ask("Who built the bridge at Hampton?", mode="long", flags={"drafter": f"rag:{options}"})
        return None if given[-1].prompt is None else scripted.tokenizer.decode(given[-1].prompt)

    both = shorter("depth=8")
    assert both is not None
    assert "Ada Miller" in both
    assert "oldest oak" in both
    nearest = shorter(f"context={len(given[-1].prompt) - 1}")
    assert nearest is not None
    assert "Ada Miller" in nearest
    assert "oldest oak" not in nearest
    assert shorter("threshold=0.4") == nearest
    assert shorter("threshold=0.99") is None
    assert shorter("context=20") is None


def test_an_empty_question_is_refused(ask: Ask) -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        ask("  \n")


def test_another_owner_has_nothing(ask: Ask) -> None:
    assert ask("Who built the bridge?", owner="someone-else").answer == NOTHING_FOUND
