"""`folio docs summary` and `folio docs questions`: what a document is about."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from service.answering.question import Sampling
from service.cli.answers import print_citations, started
from service.cli.context import LOCAL_OWNER, DeviceName, Dtype, JsonFlag, ModelName, documents_of, settings_of
from service.cli.output import emit_json, emit_text, note

if TYPE_CHECKING:
    from service.answering.answer import Answerer
    from service.settings import Settings

T = TypeVar("T")
DocumentName = Annotated[str, typer.Argument(help="Id or name of a document.", metavar="DOCUMENT")]


def register(docs: typer.Typer) -> None:
    """Add the commands of this file to `folio docs`."""
    docs.command("summary")(summary)
    docs.command("questions")(questions)


def summary(
    context: typer.Context,
    document: DocumentName,
    sentences: Annotated[int, typer.Option(min=1, max=20, help="At most.")] = 5,
    model: ModelName = None,
    dtype: Dtype = None,
    device: DeviceName = None,
    as_json: JsonFlag = False,
) -> None:
    """What a document says in a few sentences, each with its support."""
    from service.answering.summary import summary as summarised

    settings = settings_of(context, model=model, dtype=dtype, device=device)
    found = _asked(settings, document, lambda answerer, one: summarised(answerer, one, LOCAL_OWNER, sentences))
    if as_json:
        emit_json(asdict(found))
        return
    emit_text(f"{found.text}\n" if found.text else "")
    print_citations(found.citations)
    if found.note is not None:
        note(found.note)
    if found.left_out:
        note(f"Left out for want of support: {found.left_out} sentences of the model.")
    if found.read_chars < found.chars:
        note(f"Of {found.chars:,} characters, {found.read_chars:,} from all over it were looked at.")


def questions(
    context: typer.Context,
    document: DocumentName,
    limit: Annotated[int, typer.Option(min=1, max=10, help="At most.")] = 5,
    model: ModelName = None,
    dtype: Dtype = None,
    device: DeviceName = None,
    as_json: JsonFlag = False,
) -> None:
    """Questions that a document answers: each was asked, and its answer is verified. English texts only."""
    from service.answering.suggestions import Suggestion, suggestions

    async def ask(answerer: Answerer, one: str) -> list[Suggestion]:
        params = Sampling().params(answerer.answer_tokens, answerer.engine.sampling_defaults)
        return await suggestions(answerer, one, LOCAL_OWNER, params, limit)

    found = _asked(settings_of(context, model=model, dtype=dtype, device=device), document, ask)
    if as_json:
        emit_json({"questions": [asdict(one) for one in found]})
        return
    for one in found:
        emit_text(f"{one.question}\n")
    if not found:
        note("None was found whose answer could be verified.")


def _asked(settings: Settings, document: str, ask: Callable[[Answerer, str], Awaitable[T]]) -> T:
    """What the model of the settings says of a document of the data folder."""
    from service.models import check_request

    check_request(settings)
    with documents_of(settings) as shelf:
        found = shelf.find(document, LOCAL_OWNER)

    async def run() -> T:
        runtime = await started(settings)
        try:
            return await ask(runtime.answerer, found.id)
        finally:
            await runtime.stop()

    return asyncio.run(run())
