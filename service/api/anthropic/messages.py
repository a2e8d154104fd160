"""`/v1/messages` and `/v1/messages/count_tokens`: Anthropic's interface to a conversation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from service.accounts.keys import Principal
from service.answering.answer import Answerer, AnswerFailed
from service.answering.given import GivenDocuments
from service.answering.prompting.template import text_of
from service.answering.question import AnswerOptions
from service.api.anthropic.blocks import CitedText, MessageBlocks, Told
from service.api.anthropic.conversation import chat_of, decoding_of, documents_of, is_cited, question_of
from service.api.anthropic.schemas import Counted, MessageRequest
from service.api.anthropic.sources import Source, sources
from service.api.auth import Reader
from service.api.errors import MESSAGES, anthropic_problem, anthropic_problems
from service.api.health import Parts
from service.api.openai.chat import Choice, choices_of
from service.api.openai.common import STREAMED, check_model, encoded
from service.api.openai.lenient import tell_unknown
from service.api.sse import EventStream, event
from service.api.waiting import unless_gone
from service.errors import FolioError, InvalidRequest
from service.runtime import Runtime

router = APIRouter(tags=["anthropic"])

Location = Callable[[dict[str, Any]], dict[str, Any]]
"""A citation of ours as one of Anthropic's."""


@router.post(MESSAGES, responses=STREAMED | anthropic_problems(404, 504))
async def create_message(body: MessageRequest, request: Request, runtime: Parts, principal: Reader) -> Response:
    """A message, whole or as a stream of events."""
    check_model(runtime, body.model)
    tell_unknown(request, body)
    runtime.engine.admit()
    blocks = MessageBlocks(runtime.model_name)
    if body.folio is not None or is_cited(body):
        told = await _cited(body, blocks, runtime, principal)
    else:
        chat = await runtime.viewing.run(principal.owner, lambda: chat_of(body, runtime.library.read))
        (choice,) = await unless_gone(request.receive, choices_of(runtime, chat, principal))
        told = _said(choice, blocks)
    if body.stream:
        return EventStream([told], _Written(), runtime.settings.ping_s)
    await unless_gone(request.receive, _finish(told))
    return JSONResponse(blocks.message)


@router.post(f"{MESSAGES}/count_tokens", responses=anthropic_problems(404))
async def count_tokens(body: Counted, request: Request, runtime: Parts, principal: Reader) -> dict[str, int]:
    """How many tokens the prompt of a message has."""
    check_model(runtime, body.model)
    tell_unknown(request, body)
    if not is_cited(body):
        chat = await runtime.viewing.run(principal.owner, lambda: chat_of(body, runtime.library.read))
        tools = chat.use_of_tools(runtime.chat)
        messages = [message.message("messages") for message in chat.messages]
        said = [text_of(message) for message in messages]
        ids = await encoded(runtime, principal.owner, said, lambda: runtime.chat.chat_ids(messages, tools.shown))
        return {"input_tokens": len(ids)}
    question = question_of(body, AnswerOptions(mode="long"))
    runtime.answerer.check_instructions(question, "system")
    given = await runtime.viewing.run(principal.owner, lambda: sources(documents_of(body), runtime.library.read))
    passages = [source.passage(number) for number, source in enumerate(given)]
    build = runtime.answerer.layout.build
    texts = [passage.text for passage in passages]
    prompt = await encoded(
        runtime,
        principal.owner,
        texts,
        lambda: build(question.text, passages, question.turns, instructions=question.instructions),
    )
    return {"input_tokens": len(prompt.ids)}


async def _cited(
    body: MessageRequest, blocks: MessageBlocks, runtime: Runtime, principal: Principal
) -> AsyncGenerator[Told, None]:
    """The events of an answer from documents: of the request, or of the library. Raises what it is refused for."""
    answerer, options = runtime.answerer, body.folio
    location: Location = _stored_location
    if options is None:
        given = await runtime.viewing.run(principal.owner, lambda: sources(documents_of(body), runtime.library.read))
        passages = [source.passage(number) for number, source in enumerate(given)]
        answerer = Answerer(GivenDocuments(answerer.finder, passages), answerer.engine, answerer.layout)
        options, location = AnswerOptions(mode="long"), _given_location(given)
    elif documents_of(body):
        raise InvalidRequest("Give documents in the request or name them in folio, not both.", param="folio")
    question = question_of(body, options)
    answerer.check_instructions(question, "system")
    defaults = runtime.engine.sampling_defaults
    params = decoding_of(body).sampling(0, body.max_tokens, None, defaults, answering=True)
    return _answered(answerer.answer(question, params, principal.owner), blocks, location)


async def _said(choice: Choice, blocks: MessageBlocks) -> AsyncGenerator[Told, None]:
    """The events of a plain conversation."""
    begun = False
    async with aclosing(choice.stream) as items:
        async for item in items:
            if not begun:
                begun = True
                for one in blocks.begin():
                    yield one
            delta = choice.read(item)
            for one in blocks.text(delta.text):
                yield one
            for piece in delta.calls:
                for one in blocks.call(piece):
                    yield one
    for one in blocks.end(delta.finish_reason, delta.stats):
        yield one


async def _answered(
    answer: AsyncGenerator[Any, None], blocks: MessageBlocks, location: Location
) -> AsyncGenerator[Told, None]:
    """The events of an answer from documents. Raises AnswerFailed where it breaks off."""
    text, stats = CitedText(blocks, location), dict[str, Any]()
    folio: dict[str, Any] = {}
    async with aclosing(answer) as events:
        async for one in events:
            told: list[Told] = []
            if one.type == "search_results" and not folio:
                told = blocks.begin()
                folio = {name: one.data[name] for name in ("mode", "mode_reason", "query")}
            elif one.type == "message":
                told = text.add(one.data["text"])
            elif one.type == "citation":
                told = text.cite(one.data)
            elif one.type == "stats":
                stats = one.data
            elif one.type == "error":
                raise AnswerFailed(one.data)
            elif one.type == "done":
                folio |= {name: one.data[name] for name in ("verified", "claims", "refused", "note")}
                blocks.message["folio"] = folio
                told = text.end(one.data["answer"]) + blocks.end(one.data["finish_reason"], stats)
            for each in told:
                yield each


def _given_location(given: list[Source]) -> Location:
    """Citations of the request's own documents."""
    return lambda citation: given[int(citation["document"])].location(citation["start"], citation["end"])


def _stored_location(citation: dict[str, Any]) -> dict[str, Any]:
    """A citation of the library, as one of a search result whose source is the document's id."""
    return {
        "type": "search_result_location",
        "cited_text": citation["cited_text"],
        "source": citation["document"],
        "title": citation["name"],
        "search_result_index": max(0, citation["label"] - 1),
        "start_block_index": 0,
        "end_block_index": 1,
        "folio": {name: citation[name] for name in ("document", "start", "end", "page", "place", "support")},
    }


async def _finish(told: AsyncGenerator[Told, None]) -> None:
    async with aclosing(told) as events:
        async for _ in events:
            pass


class _Written:
    """Events as server-sent ones; see `service.api.sse.Writer`."""

    def begin(self) -> bytes:
        return b""

    def item(self, number: int, item: Told) -> bytes:
        return event(item, item["type"])

    def end(self) -> bytes:
        return b""

    def failure(self, error: FolioError) -> bytes:
        return event(anthropic_problem(error), "error")
