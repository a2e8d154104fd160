"""Question → evidence → prompt → tokens → claims, their support and their citations → statistics.

An answer is a stream of typed events; front ends render them as they like (`service.api.answer` as server-sent
events, `folio ask` on the terminal) and `collect` folds them into one object.

How evidence is found is `service.answering.evidence`'s subject; mode iterative, which alternates between retrieval and
generation, is `service.answering.iterative`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from drafters.stats import TARGET
from retrieval.iterative.strides import Experiences
from retrieval.store.shelf import DEFAULT_OWNER
from service.answering.conversation.turns import understood
from service.answering.datastores import Datastores
from service.answering.evidence import Evidence, EvidenceFinder
from service.answering.iterative import IterativeAnswer, experience_kind
from service.answering.one_shot import OneShotAnswer
from service.answering.prompting.layouts import PromptLayout
from service.answering.proof import proof_of
from service.answering.question import STEPWISE, Question, nothing_to_instruct, nothing_to_steer
from service.answering.support.attribution import Attributed, Attribution
from service.answering.support.refusals import is_refusal
from service.engine.async_engine import AsyncEngine
from service.engine.options import blends
from service.engine.outputs import TokenOutput
from service.engine.params import SamplingParams
from service.errors import FolioError, InvalidRequest

log = structlog.get_logger(__name__)

QUOTED_TOKENS = 1024
"""of an answer of the embedded reader at least, where none is named: it quotes whole sentences, and of a script that
its tokenizer does not know it reads and says bytes"""
NOTHING_FOUND = "There is nothing in the documents to answer this from."


@dataclass(frozen=True, slots=True)
class Event:
    """One event of an answer under way.

    `type` is one of search_results, message, citation, stats, receipt, error, done; `data` is its JSON.
    """

    type: str
    data: dict[str, Any]


@dataclass
class Answer:
    """A whole answer, as `POST /v1/answer` and `folio ask --json` give it."""

    answer: str = ""
    refused: bool = False
    mode: str = ""
    mode_reason: str = ""
    query: str | None = None
    verified: bool = False
    claims: list[dict[str, Any]] = field(default_factory=list)
    citations: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    note: str | None = None
    finish_reason: str | None = None
    stats: dict[str, Any] = field(default_factory=dict)
    proof: dict[str, Any] | None = None
    receipt: dict[str, Any] | None = None


@dataclass(frozen=True)
class Made:
    """All that an answer was made of, and what came of it, for a receipt.

    Attributes:
        question: as it was asked, what a follow-up became of it included.
        params: before the layout chose an answer.
    """

    question: Question
    params: SamplingParams
    evidence: Evidence
    answer: str
    token_ids: Sequence[int] = ()
    finish_reason: str | None = None
    claims: Sequence[Attributed] = ()

    @property
    def refused(self) -> bool:
        return is_refusal(self.answer)


Record = Callable[[Made], dict[str, Any]]
"""Makes the receipt of an answer. Called in a thread."""


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

    @property
    def shown(self) -> str:
        """What has been shown, without the white space in front of it."""
        return self._shown.lstrip()

    @property
    def finished(self) -> bool:
        """Whether the answer has its end: the model stopped, or went on with what is not shown."""
        return self.finish == "stop" or self._layout.visible(self.text) == self._layout.visible(f"{self.text}.")

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

    @property
    def answer_tokens(self) -> int:
        """Longest answer where a question names none."""
        longest = self.finder.settings.answer_tokens
        return max(longest, QUOTED_TOKENS) if self.layout.quotes else longest

    async def answer(
        self,
        question: Question,
        params: SamplingParams,
        owner: str = DEFAULT_OWNER,
        record: Record | None = None,
    ) -> AsyncGenerator[Event, None]:
        """The events of the answer: search_results, messages, citations, stats, and `done` last.

        Args:
            record: makes the data of a `receipt` event, before `done`.

        Raises FolioError before the first event for a question that cannot be answered as asked (unknown
        document or drafter; too long; queue full). Later failures are an `error` event, then `done`.
        """
        began = time.monotonic()
        params = replace(params, owner=owner)
        if record is not None:
            question.check_recordable()
        writer = await self._writer(question, params, owner)
        evidence = await writer.begin()
        if evidence.prompt is not None:
            self.engine.check_prompt(evidence.prompt.ids, params, "question", evidence.prompt.spans)
        yield _search_results(evidence)
        if evidence.prompt is None:
            message, stats, done = await self._nothing(question, evidence, owner)
            yield message
            yield stats
            if record is not None:
                made = Made(question, params, evidence, NOTHING_FOUND, finish_reason="no_evidence")
                yield Event("receipt", await asyncio.to_thread(record, made))
            yield done
            return
        written = AnswerText(self.layout, began)
        attribution = self._attribution(evidence, owner)
        try:
            async with aclosing(writer.outputs()) as outputs:
                async for output in outputs:
                    said = written.add(output)
                    if said is not None:
                        yield said
                    if evidence.mode not in STEPWISE:  # what it reads changes under way
                        for event in _citations(attribution.feed(written.shown), evidence):
                            yield event
            read = await writer.evidence()
            if read is not evidence:
                yield _search_results(read)
                attribution = self._attribution(read, owner)
            answer = written.shown.rstrip()
            for event in _citations(await attribution.end(answer, written.finished), read):
                yield event
            yield Event("stats", answer_stats(written.stats, read, written.ttft_s, self.layout.name))
            if record is not None:
                made = Made(question, params, read, answer, written.ids, written.finish, attribution.claims)
                yield Event("receipt", await asyncio.to_thread(record, made))
            proof = await self._proof(question, read, owner) if is_refusal(answer) else None
            note = attribution.note(answer, written.finish)
            yield _done(read, answer, written.finish, note, attribution.claims, proof)
        except FolioError as error:
            yield Event("error", error.as_problem())
            yield Event("done", {"finish_reason": "error"})
        finally:
            await attribution.stop()

    def check_instructions(self, question: Question, param: str = "instructions") -> None:
        """Raises InvalidRequest, naming `param`, for instructions to a model that follows none."""
        if question.instructions.strip() and not self.layout.instructed:
            raise nothing_to_instruct(param)

    def _attribution(self, evidence: Evidence, owner: str) -> Attribution:
        assert evidence.prompt is not None
        return Attribution(evidence.prompt.passages, lambda span: self.finder.check(span, owner))

    async def _writer(self, question: Question, params: SamplingParams, owner: str) -> OneShotAnswer | IterativeAnswer:
        """Who writes the answer. Raises FolioError for a question that cannot be answered, before any work."""
        self.engine.admit()
        await self.engine.checked(params)
        stepwise = question.mode in STEPWISE or question.knn is not None
        if stepwise and self.layout.quotes:
            raise nothing_to_steer("mode" if question.mode in STEPWISE else "knn")
        if question.mode in STEPWISE and blends(params.attention):
            raise InvalidRequest(
                "Prompts that change while an answer is written are not blended of passages.",
                hint="Use mode retrieval, or another attention policy.",
                param="attention",
            )
        self.check_instructions(question)
        if params.adjusted and stepwise:
            raise InvalidRequest(
                "Penalties, biases and constraints need an answer that is decoded in one piece by the model alone.",
                hint="Use mode long or retrieval, without a kNN datastore.",
                param="mode",
            )
        library = self.finder.library
        named = await asyncio.to_thread(question.check, library, owner)
        question = await understood(question, self.layout, self.engine, self.finder.settings.follow_ups, owner)
        if question.mode not in STEPWISE:
            return OneShotAnswer(question, owner, named, params, self.finder, self.datastores, self.engine)
        experience = self._experiences.of(experience_kind(question, owner))
        return IterativeAnswer(question, owner, params, library, self.layout, self.engine, experience)

    async def _nothing(self, question: Question, evidence: Evidence, owner: str) -> list[Event]:
        """The events of an answer from nothing."""
        proof = await self._proof(question, evidence, owner)
        return [
            Event("message", {"text": NOTHING_FOUND}),
            Event("stats", answer_stats({}, evidence, None, self.layout.name)),
            _done(evidence, NOTHING_FOUND, "no_evidence", NOTHING_FOUND, proof=proof),
        ]

    async def _proof(self, question: Question, evidence: Evidence, owner: str) -> dict[str, Any]:
        return await self.finder.turns.run(owner, lambda: proof_of(self.finder, question, evidence, owner))


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


def _citations(judged: Iterable[tuple[int, Attributed]], evidence: Evidence) -> Iterable[Event]:
    """The citations of claims, given by their numbers in the answer."""
    return [Event("citation", data) for number, one in judged for data in one.citation_data(number, evidence.names)]


def _done(
    evidence: Evidence,
    answer: str,
    finish_reason: str | None,
    note: str | None,
    claims: Sequence[Attributed] = (),
    proof: dict[str, Any] | None = None,
) -> Event:
    """The last event: the answer as it stands, and what is to be said about it."""
    return Event(
        "done",
        {
            "finish_reason": finish_reason,
            "answer": answer,
            "refused": is_refusal(answer),
            "mode": evidence.mode,
            "mode_reason": evidence.reason,
            "verified": bool(claims) and all(one.judged.support != "none" for one in claims),
            "claims": [one.claim_data() for one in claims],
            "note": note,
            "proof": proof,
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
            elif event.type == "receipt":
                answer.receipt = data
            elif event.type == "error":
                raise AnswerFailed(data)
            elif event.type == "done":
                answer.answer, answer.refused = data["answer"], data["refused"]
                answer.finish_reason = data["finish_reason"]
                answer.verified, answer.claims = data["verified"], data["claims"]
                answer.note, answer.proof = data["note"], data.get("proof")
    return answer
