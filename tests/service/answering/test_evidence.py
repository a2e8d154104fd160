"""Evidence is gathered in turns: whoever asks much leaves room for others."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

import pytest

from service.answering.evidence import PLACES, Evidence, EvidenceFinder
from service.answering.given import GivenDocuments
from service.answering.question import Question


@pytest.mark.parametrize("given", [False, True])
def test_one_owner_leaves_a_place_to_others(monkeypatch: pytest.MonkeyPatch, given: bool) -> None:
    gate = threading.Event()
    running: list[str] = []

    def look(self: Any, question: Question, *_: Any) -> Evidence:
        running.append(question.text)
        assert question.text == "alice" or gate.wait(20)
        return Evidence("retrieval", "", None, [])

    monkeypatch.setattr(EvidenceFinder, "_find", look)
    monkeypatch.setattr(GivenDocuments, "read", look)
    nothing = cast(Any, None)
    finder = EvidenceFinder(nothing, nothing, 100, nothing)

    def ask(owner: str) -> asyncio.Task[Evidence]:
        own = GivenDocuments(finder, []) if given else finder
        return asyncio.create_task(own.find(Question(question=owner), owner, [], 10))

    async def run() -> None:
        many = [ask("bob") for _ in range(10)]
        await asyncio.sleep(0.1)
        assert len(running) == PLACES - 1
        assert (await asyncio.wait_for(ask("alice"), 5)).mode == "retrieval"
        gate.set()
        await asyncio.gather(*many)

    asyncio.run(run())
