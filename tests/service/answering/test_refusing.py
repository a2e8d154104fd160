"""An answer that is none says so everywhere, and the model is not asked where nothing found answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retrieval.library import Library
from service.answering.answer import NOTHING_FOUND, Answer, collect
from service.answering.prompting.layouts import ReadingLimits
from service.answering.prompting.styles import REPEATED
from service.answering.question import Question
from service.engine.params import SamplingParams
from service.runtime import Runtime
from service.settings import load_settings


class Ranker:
    """Sure of sentences by a word."""

    def __init__(self, bound: float) -> None:
        self._bound = bound

    def knows(self, *texts: str) -> bool:
        return not any("Brücke" in text for text in texts)

    def refuse_below(self, question: str, among: int) -> float:
        return self._bound

    def score(self, question: str, sentences: list[str], contexts: list[str], room: int = 0) -> list[float]:
        return [0.8 if "Ada" in sentence else 0.1 for sentence in sentences]

    def passages(self, question: str, texts: list[list[str]], contexts: list[str]) -> list[float]:
        return [max(self.score(question, sentences, contexts)) for sentences in texts]


@pytest.fixture
def ask(home: Path, tiny_model: Path, make_scripted: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def run(
        text: str,
        reply: Callable[[str], str],
        limits: ReadingLimits | None = None,
        bound: float = 0.0,
        quotes: bool = False,
        **how: Any,
    ) -> Answer:
        """bound: the ranker's."""
        monkeypatch.setattr(Library, "ranker", Ranker(bound))

        async def go() -> Answer:
            runtime = Runtime(load_settings(home=home, model=str(tiny_model)), engine=make_scripted(reply))
            await runtime.start()
            try:
                await runtime.ended.wait()
                runtime.answerer.layout.limits = limits
                runtime.answerer.layout.quotes = quotes
                question = Question(question=text, mode="retrieval", **how)
                return await collect(runtime.answerer.answer(question, SamplingParams(), "local"))
            finally:
                await runtime.stop()

        return asyncio.run(go())

    return run


@pytest.mark.parametrize("reply", ["The passages do not mention it.", "Dazu steht nichts in den Dokumenten."])
def test_a_refusal_of_the_model_is_said_to_be_one(ask: Callable[..., Any], reply: str) -> None:
    answer = ask("Who built the bridge at Hampton?", lambda _: reply)
    assert (answer.answer, answer.refused) == (reply, True)
    assert not ask("Who built the bridge at Hampton?", lambda _: f"{reply} But Ada Miller built it.").refused


@pytest.mark.parametrize(("bound", "asked"), [(0.0, True), (0.8, True), (0.81, False)])
@pytest.mark.parametrize("whose", ["bound", "refuse_below"])
def test_below_the_bound_the_model_is_not_asked(ask: Callable[..., Any], bound: float, asked: bool, whose: str) -> None:
    answer = ask("Who built the bridge at Hampton?", lambda _: "Ada Miller built it.", **{whose: bound})
    assert answer.refused is not asked
    if asked:
        assert answer.answer == "Ada Miller built it."
    else:
        assert (answer.answer, answer.finish_reason) == (NOTHING_FOUND, "no_evidence")
        assert answer.mode_reason.endswith("the surest sentence answers with a probability of 0.80, less than 0.81")
        assert answer.results


@pytest.mark.parametrize(("question", "refused"), [("Who built the bridge?", True), ("Wer baute die Brücke?", False)])
def test_the_ranker_s_bound_is_for_what_the_ranker_reads(ask: Callable[..., Any], question: str, refused: bool) -> None:
    answer = ask(question, lambda _: "Ada.", bound=0.99)
    assert answer.refused is refused


def test_a_question_s_own_bound_goes_before_the_ranker_s(ask: Callable[..., Any]) -> None:
    answer = ask("Who built it?", lambda _: "Ada.", bound=0.99, refuse_below=0.0)
    assert not answer.refused


def test_a_model_that_quotes_chooses_by_itself(ask: Callable[..., Any]) -> None:
    assert not ask("Who built the bridge at Hampton?", lambda _: "Ada.", bound=0.81, quotes=True).refused


def test_the_likeliest_sentences_stand_beside_the_question(ask: Callable[..., Any]) -> None:
    prompts: list[str] = []
    ask("Who built the bridge at Hampton?", lambda prompt: prompts.append(prompt) or "Ada.", bound=0.5)
    _, repeated = prompts[0].split(REPEATED)
    assert repeated.index("Ada") < repeated.index("Question: ")
    prompts.clear()
    ask("Wer baute die Brücke bei Hampton?", lambda prompt: prompts.append(prompt) or "Ada.", bound=0.5)
    assert REPEATED not in prompts[0], "the ranker does not read German"


def test_as_many_passages_as_suit_the_model_unless_the_question_says(ask: Callable[..., Any]) -> None:
    limits = ReadingLimits(passages=1)
    assert len(ask("bridge, mill, oak and limes", lambda _: "x", limits=limits).results) == 1
    assert len(ask("bridge, mill, oak and limes", lambda _: "x", limits=limits, passages=2).results) == 2
