"""Question → evidence → prompt → tokens → citations, each checked against the store → statistics.

An answer is a stream of typed events; front ends render them as they like (`service.api.answer` as server-sent
events, `folio ask` on the terminal) and `collect` folds them into one object.

How evidence is found is `service.answering.evidence`'s subject; mode iterative, which alternates between retrieval and
generation, is `service.answering.iterative`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import structlog

from drafters.stats import TARGET
from retrieval.iterative.strides import Experiences
from retrieval.store.shelf import DEFAULT_OWNER
from service.answering.citations import Citation, unsupported
from service.answering.conversation import understood
from service.answering.datastores import Datastores
from service.answering.evidence import Evidence, EvidenceFinder
from service.answering.iterative import IterativeAnswer, experience_kind
from service.answering.one_shot import OneShotAnswer
from service.answering.prompting import PromptLayout
from service.answering.question import Question
from service.engine.async_engine import AsyncEngine
from service.engine.outputs import TokenOutput
from service.engine.params import SamplingParams
from service.errors import FolioError, InvalidRequest

log = structlog.get_logger(__name__)

NOTHING_FOUND = "There is nothing in the documents to answer this from."
NO_SUPPORT = "No passage of the documents was found that supports this answer."


@dataclass(frozen=True, slots=True)
class Event:
    """One event of an answer under way.

    `type` is one of search_results, message, citation, stats, error, done; `data` is its JSON.
    """

    type: str
    data: dict[str, Any]


@dataclass
class Answer:
    """A whole answer, as `POST /v1/answer` and `folio ask --json` give it."""

    answer: str = ""
    mode: str = ""
    mode_reason: str = ""
    query: str | None = None
    citations: list[dict[str, Any]] = field(default_factory=list)
    unsupported: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    note: str | None = None
    finish_reason: str | None = None
    stats: dict[str, Any] = field(default_factory=dict)


class AnswerText:
    """The text of an answer as it comes: what of it may be shown, and how its generation went."""

    def __init__(self, layout: PromptLayout, began: float) -> None:
        """began: when the question came, in seconds of ``time.monotonic``."""
        self.ids: list[int] = []
        self.text = ""
        self.ttft_s: float | None = None
        self.stats: Mapping[str, Any] = {}
        self.finish: str | None = None
        self._layout = layout
        self._began = began
        self._shown = ""

    def add(self, output: TokenOutput) -> Event | None:
        """The message of what `output` makes visible; None where that is nothing."""
        if self.ttft_s is None and output.token_ids:
            self.ttft_s = time.monotonic() - self._began
        self.ids += output.token_ids
        self.stats, self.finish = output.stats, output.finish_reason
        tokens = []
        for piece, source in _by_token(output):
            self.text += piece
            visible = self._layout.visible(self.text)
            if len(visible) > len(self._shown):
                tokens.append({"text": visible[len(self._shown) :], "source": source})
                self._shown = visible
        if not tokens:
            return None
        return Event("message", {"text": "".join(token["text"] for token in tokens), "tokens": tokens})


class Answerer:
    """Answers questions over the documents of one library with one model."""

    def __init__(self, finder: EvidenceFinder, engine: AsyncEngine, layout: PromptLayout) -> None:
        self.finder = finder
        self.engine = engine
        self.layout = layout
        self.datastores = Datastores(finder.library)
        self._experiences = Experiences()

    async def answer(
        self, question: Question, params: SamplingParams, owner: str = DEFAULT_OWNER
    ) -> AsyncGenerator[Event, None]:
        """The events of the answer: search_results, messages, citations, stats, and `done` last.

        Raises FolioError before the first event for a question that cannot be answered as asked (unknown
        document or drafter; too long; queue full). Later failures are an `error` event, then `done`.
        """
        began = time.monotonic()
        writer = await self._writer(question, params, owner)
        evidence = await writer.begin()
        if evidence.prompt is not None:
            self.engine.check_prompt(evidence.prompt.ids, params, "question")
        yield _search_results(evidence)
        if evidence.prompt is None:
            for event in self._nothing(evidence):
                yield event
            return
        written = AnswerText(self.layout, began)
        try:
            async with aclosing(writer.outputs()) as outputs:
                async for output in outputs:
                    message = written.add(output)
                    if message is not None:
                        yield message
            read = await writer.evidence()
            if read is not evidence:
                yield _search_results(read)
            for event in await self._conclusion(read, written, owner):
                yield event
        except FolioError as error:
            yield Event("error", error.as_problem())
            yield Event("done", {"finish_reason": "error"})

    async def _writer(self, question: Question, params: SamplingParams, owner: str) -> OneShotAnswer | IterativeAnswer:
        """Who writes the answer. Raises FolioError for a question that cannot be answered, before any work."""
        self.engine.admit()
        await self.engine.checked(params)
        if params.adjusted and (question.mode == "iterative" or question.knn is not None):
            raise InvalidRequest(
                "Penalties, biases and constraints need an answer that is decoded in one piece by the model alone.",
                hint="Use mode long or retrieval, without a kNN datastore.",
                param="mode",
            )
        library = self.finder.library
        named = await asyncio.to_thread(question.check, library, owner)
        question = await understood(question, self.layout, self.engine, self.finder.settings.follow_ups)
        if question.mode != "iterative":
            return OneShotAnswer(question, owner, named, params, self.finder, self.datastores, self.engine)
        experience = self._experiences.of(experience_kind(question, owner))
        return IterativeAnswer(question, owner, params, library, self.layout, self.engine, experience)

    def _nothing(self, evidence: Evidence) -> list[Event]:
        """The events of an answer from nothing."""
        return [
            Event("message", {"text": NOTHING_FOUND}),
            Event("stats", answer_stats({}, evidence, None, self.layout.name)),
            _done(evidence, NOTHING_FOUND, "no_evidence", NOTHING_FOUND),
        ]

    async def _conclusion(self, evidence: Evidence, written: AnswerText, owner: str) -> list[Event]:
        """Citations, statistics, and the end."""
        assert evidence.prompt is not None
        # Whole documents are gone through here: not in the event loop, which serves others meanwhile.
        answer, spans = await asyncio.to_thread(self.layout.citations, evidence.prompt, written.ids, written.text)
        if evidence.mode == "iterative":  # a number that the model gives is that of a passage in a prompt long gone
            spans = [span for span in spans if span.quoted]
        citations = await self.finder.checked(spans, owner)
        supported = [citation.span for citation in citations if citation.verified]
        bare = await asyncio.to_thread(unsupported, answer, supported, evidence.prompt.passages)
        return [
            *(Event("citation", citation_data(citation, evidence.names)) for citation in citations),
            Event("stats", answer_stats(written.stats, evidence, written.ttft_s, self.layout.name)),
            _done(evidence, answer, written.finish, None if supported else NO_SUPPORT, bare),
        ]


def _search_results(evidence: Evidence) -> Event:
    return Event(
        "search_results",
        {
            "mode": evidence.mode,
            "mode_reason": evidence.reason,
            "query": evidence.query,
            "results": evidence.results,
            "generation": evidence.generation,
            "retrieval_ms": evidence.retrieval_ms,
        },
    )


def _done(
    evidence: Evidence,
    answer: str,
    finish_reason: str | None,
    note: str | None,
    bare: Sequence[tuple[int, int]] = (),
) -> Event:
    """The last event: the answer as it stands, and what is to be said about it."""
    return Event(
        "done",
        {
            "finish_reason": finish_reason,
            "answer": answer,
            "mode": evidence.mode,
            "mode_reason": evidence.reason,
            "unsupported": [{"start": start, "end": end, "text": answer[start:end]} for start, end in bare],
            "note": note,
        },
    )


def answer_stats(engine: Mapping[str, Any], evidence: Evidence, ttft_s: float | None, layout: str) -> dict[str, Any]:
    """The statistics of one answer: the engine's own, with times as the asker sees them.

    `ttft_s` counts from the question, retrieval included; the engine's own is `engine_ttft_s`.
    """
    stats = {"prompt_tokens": 0, "output_tokens": 0, "decode_tokens_per_s": None, **engine}
    stats["engine_ttft_s"] = engine.get("ttft_s")
    stats["ttft_s"] = ttft_s
    stats["retrieval_ms"] = evidence.retrieval_ms
    stats["history_turns"] = evidence.turns
    stats["layout"] = layout
    drafting = stats.get("drafting") or {}
    stats["drafted_tokens"] = drafting.get("drafted", 0)
    stats["accepted_tokens"] = drafting.get("accepted", 0)
    stats["acceptance_rate"] = drafting.get("acceptance_rate")
    stats["accepted_length"] = drafting.get("accepted_length")
    return stats


def citation_data(citation: Citation, names: Mapping[str, str]) -> dict[str, Any]:
    """A citation as JSON."""
    span = citation.span
    return {
        "document": span.document,
        "name": names.get(span.document, ""),
        "start": span.start,
        "end": span.end,
        "page": citation.page,
        "place": citation.place,
        "cited_text": span.cited_text,
        "verified": citation.verified,
        "quoted": span.quoted,
        "label": span.label,
        "answer_start": span.answer_start,
        "answer_end": span.answer_end,
        "boxes": list(citation.boxes),
    }


class AnswerFailed(FolioError):
    """An answer that broke off after it had begun, as an `error` event tells it."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__(data["detail"])
        self.status = data["status"]  # type: ignore[misc]
        self.title = data["title"]  # type: ignore[misc]
        self.problem = data["type"].rpartition(":")[2]  # type: ignore[misc]


def _by_token(output: TokenOutput) -> Iterable[tuple[str, str]]:
    """(text, source) of each token; one pair for all where the model has no text for single ones."""
    if output.pieces and len(output.pieces) == len(output.sources):
        return zip(output.pieces, output.sources, strict=True)
    return [(output.text, TARGET)]


async def collect(events: AsyncGenerator[Event, None]) -> Answer:
    """Fold a stream of events into one answer; an `error` event becomes AnswerFailed."""
    answer = Answer()
    async with aclosing(events):
        async for event in events:
            data = event.data
            if event.type == "search_results":
                answer.mode, answer.mode_reason = data["mode"], data["mode_reason"]
                answer.query = data["query"]
                answer.results = data["results"]
            elif event.type == "citation":
                answer.citations.append(data)
            elif event.type == "stats":
                answer.stats = data
            elif event.type == "error":
                raise AnswerFailed(data)
            elif event.type == "done":
                answer.answer = data["answer"]
                answer.finish_reason = data["finish_reason"]
                answer.unsupported = data["unsupported"]
                answer.note = data["note"]
    return answer
