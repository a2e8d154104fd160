"""Question → mode → evidence → prompt → streamed generation → citations, each checked against the store.

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
from service.answering.citations import Citation, unsupported
from service.answering.datastores import Datastores
from service.answering.evidence import Evidence, EvidenceFinder, Question
from service.answering.iterative import IterativeAnswer, experience_kind
from service.answering.knn import KnnRequest
from service.answering.prompting import PromptLayout
from service.engine.request import DraftSources, SamplingParams, TokenOutput
from service.errors import FolioError, InvalidRequest
from service.generation import Generator

__all__ = ["Answer", "Answerer", "Event", "Question", "collect"]

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
    citations: list[dict[str, Any]] = field(default_factory=list)
    unsupported: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    note: str | None = None
    finish_reason: str | None = None
    stats: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Generated:
    """How the generation of an answer went."""

    stats: Mapping[str, Any]
    finish: str | None
    ttft_s: float | None


class Answerer:
    """Answers questions over the documents of one library with one model."""

    def __init__(self, finder: EvidenceFinder, generator: Generator, layout: PromptLayout) -> None:
        self.finder = finder
        self.generator = generator
        self.layout = layout
        self.datastores = Datastores(finder.library)
        self._experiences = Experiences()

    async def answer(self, question: Question, params: SamplingParams) -> AsyncGenerator[Event, None]:
        """The events of the answer: search_results, messages, citations, stats, and `done` last.

        Raises FolioError before the first event for a question that cannot be answered as asked (unknown
        document or mode; too long; queue full). Later failures are an `error` event, then `done`.
        """
        began = time.monotonic()
        if not question.text.strip():
            raise InvalidRequest("The question is empty.", param="question")
        self.generator.admit()
        self.generator.check_options(params)
        if params.adjusted and (question.mode == "iterative" or question.knn is not None):
            raise InvalidRequest(
                "Penalties, biases and constraints need an answer that is decoded in one piece by the model alone.",
                hint="Use mode long or retrieval, without a kNN datastore.",
                param="mode",
            )
        if question.mode == "iterative":
            if question.knn is not None:
                raise InvalidRequest("Mode iterative does not decode with a kNN datastore.", param="knn")
            library, kind = self.finder.library, experience_kind(question)
            experience = self._experiences.of(kind)
            run = IterativeAnswer(question, params, library, self.layout, self.generator, experience)
            evidence = await run.begin()
            answering = self._iterate(run, evidence, began)
        else:
            evidence = await self.finder.find(question, params.max_tokens, params.drafter)
            if evidence.prompt is not None:
                self.generator.check(len(evidence.prompt.ids), params.max_tokens, "question")
            answering = self._respond(evidence, params, began, await self._datastore(question))
        yield _search_results(evidence)
        try:
            async with aclosing(answering) as events:
                async for event in events:
                    yield event
        except FolioError as error:
            yield Event("error", error_data(error))
            yield Event("done", {"finish_reason": "error"})

    async def _datastore(self, question: Question) -> KnnRequest | None:
        """The kNN datastore that the question asks for, ready; NotFound and the like where it cannot be used."""
        if question.knn is None:
            return None
        return await self.datastores.prepare(self.generator, question.owner, question.collection, question.knn)

    async def _respond(
        self, evidence: Evidence, params: SamplingParams, began: float, knn: KnnRequest | None
    ) -> AsyncGenerator[Event, None]:
        """Generate from the evidence: messages as they come, then citations and statistics."""
        if evidence.prompt is None:
            for event in self._nothing(evidence):
                yield event
            return
        store = await asyncio.to_thread(self.finder.library.token_store, evidence.owner)
        sources = DraftSources(prompt=evidence.draft_ids, datastore=store)
        ids: list[int] = []
        text = shown = ""
        ttft: float | None = None
        stats: Mapping[str, Any] = {}
        finish = None
        generated = (
            self.generator.stream(evidence.prompt.ids, params, sources)
            if knn is None
            else self.datastores.stream(self.generator, evidence.prompt.ids, params, knn)
        )
        async with aclosing(generated) as outputs:
            async for output in outputs:
                if ttft is None and output.token_ids:
                    ttft = time.monotonic() - began
                ids += output.token_ids
                tokens = []
                for piece, source in _by_token(output):
                    text += piece
                    visible = self.layout.visible(text)
                    if len(visible) > len(shown):
                        tokens.append({"text": visible[len(shown) :], "source": source})
                        shown = visible
                if tokens:
                    yield Event("message", {"text": "".join(t["text"] for t in tokens), "tokens": tokens})
                stats, finish = output.stats, output.finish_reason
        async for event in self._conclude(evidence, ids, text, Generated(stats, finish, ttft)):
            yield event

    async def _iterate(self, run: IterativeAnswer, evidence: Evidence, began: float) -> AsyncGenerator[Event, None]:
        """Retrieve and generate in turn: messages as they are verified, then as `_respond`."""
        if evidence.prompt is None:
            for event in self._nothing(evidence):
                yield event
            return
        text = shown = ""
        ttft: float | None = None
        async with aclosing(run.pieces()) as pieces:
            async for piece in pieces:
                if ttft is None:
                    ttft = time.monotonic() - began
                text += piece
                visible = self.layout.visible(text)
                if len(visible) > len(shown):
                    new = visible[len(shown) :]
                    yield Event("message", {"text": new, "tokens": [{"text": new, "source": TARGET}]})
                    shown = visible
        evidence = await run.evidence()
        yield _search_results(evidence)
        async for event in self._conclude(evidence, run.ids, text, Generated(run.stats(), run.finish, ttft)):
            yield event

    def _nothing(self, evidence: Evidence) -> list[Event]:
        """The events of an answer from nothing."""
        return [
            Event("message", {"text": NOTHING_FOUND}),
            Event("stats", answer_stats({}, evidence.retrieval_ms, None, self.layout.name)),
            _done(evidence, NOTHING_FOUND, "no_evidence", NOTHING_FOUND),
        ]

    async def _conclude(
        self, evidence: Evidence, ids: Sequence[int], text: str, generated: Generated
    ) -> AsyncGenerator[Event, None]:
        """Citations, statistics, and the end."""
        assert evidence.prompt is not None
        # Whole documents are gone through here: not in the event loop, which serves others meanwhile.
        answer, spans = await asyncio.to_thread(self.layout.citations, evidence.prompt, ids, text)
        if evidence.mode == "iterative":  # a number that the model gives is that of a passage in a prompt long gone
            spans = [span for span in spans if span.quoted]
        citations = await self.finder.checked(spans, evidence.owner)
        for citation in citations:
            yield Event("citation", citation_data(citation, evidence.names))
        supported = [citation.span for citation in citations if citation.verified]
        bare = await asyncio.to_thread(unsupported, answer, supported, evidence.prompt.passages)
        stats = answer_stats(generated.stats, evidence.retrieval_ms, generated.ttft_s, self.layout.name)
        yield Event("stats", stats)
        yield _done(evidence, answer, generated.finish, None if supported else NO_SUPPORT, bare)


def _search_results(evidence: Evidence) -> Event:
    return Event(
        "search_results",
        {
            "mode": evidence.mode,
            "mode_reason": evidence.reason,
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


def answer_stats(engine: Mapping[str, Any], retrieval_ms: float, ttft_s: float | None, layout: str) -> dict[str, Any]:
    """The statistics of one answer: the engine's own, with times as the asker sees them.

    `ttft_s` counts from the question, retrieval included; the engine's own is `engine_ttft_s`.
    """
    stats = {"prompt_tokens": 0, "output_tokens": 0, "decode_tokens_per_s": None, **engine}
    stats["engine_ttft_s"] = engine.get("ttft_s")
    stats["ttft_s"] = ttft_s
    stats["retrieval_ms"] = retrieval_ms
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


def error_data(error: FolioError) -> dict[str, Any]:
    """An error as the data of an `error` event: the fields of problem+json."""
    return {
        "type": f"urn:folio:problem:{error.problem}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
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
