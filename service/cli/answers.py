"""`folio ask`: one question, answered on the terminal."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from service.cli.context import (
    LOCAL_OWNER,
    Attention,
    Collection,
    DeviceName,
    Drafter,
    Dtype,
    JsonFlag,
    ModelName,
    settings_of,
)
from service.cli.explaining import AnswerWriter, PlainText, SourceColours
from service.cli.output import emit_json, emit_text, note, working

if TYPE_CHECKING:
    from retrieval.types import Mode
    from service.answering.answer import Answer, Question
    from service.engine.request import SamplingParams
    from service.settings import Settings


class Switch(StrEnum):
    ON = "on"
    OFF = "off"


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("ask")(ask)


def ask(
    context: typer.Context,
    question: Annotated[str, typer.Argument(help="The question.", metavar="QUESTION")],
    document: Annotated[
        list[str] | None,
        typer.Option("--document", "-d", help="Answer from this id alone; may be repeated."),
    ] = None,
    collection: Collection = None,
    mode: Annotated[str, typer.Option(help="auto, long (read whole), retrieval or iterative.")] = "auto",
    passages: Annotated[int | None, typer.Option(min=1, max=100, help="Passages to retrieve.")] = None,
    speculate: Annotated[
        Switch, typer.Option(help="Mode iterative and --knn: guess what a search will find and verify later.")
    ] = Switch.ON,
    k: Annotated[int, typer.Option("--k", help="Mode iterative: tokens between searches.")] = 4,
    stride: Annotated[
        int | None,
        typer.Option(help="Mode iterative and --knn: guesses to one verification; default: as pays best."),
    ] = None,
    retriever: Annotated[str, typer.Option(help="Mode iterative: hybrid, dense or sparse.")] = "hybrid",
    knn: Annotated[
        bool, typer.Option("--knn", help="Decode with the documents' datastore (folio index build --knn).")
    ] = False,
    knn_k: Annotated[int, typer.Option(help="--knn: neighbours of a token.")] = 64,
    knn_weight: Annotated[float, typer.Option(help="--knn: share of the neighbours, 0 to 1.")] = 0.25,
    knn_temperature: Annotated[float, typer.Option(help="--knn: of the neighbours' distances.")] = 100.0,
    knn_probes: Annotated[
        int | None, typer.Option(help="--knn: lists of the datastore looked at; default: every entry.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answer.")] = 0,
    model: ModelName = None,
    dtype: Dtype = None,
    device: DeviceName = None,
    drafter: Drafter = None,
    attention: Attention = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Colour each token by who supplied it: a drafter or the model.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Answer a question over the documents, with citations that are checked against their text."""
    settings = settings_of(context, model=model, dtype=dtype, device=device, drafter=drafter, attention=attention)
    from retrieval.knn.decoding import KnnOptions
    from service.answering.evidence import IterativeOptions, Question
    from service.engine.request import SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens or settings.answer_tokens,
        temperature=temperature,
        seed=seed,
    )
    iterative = IterativeOptions(speculate is Switch.ON, k, stride, retriever=cast("Mode", retriever))
    asked = Question(
        question,
        mode,
        tuple(document or ()),
        collection,
        LOCAL_OWNER,
        passages,
        iterative=iterative,
        knn=KnnOptions(knn_k, knn_weight, knn_temperature, speculate is Switch.ON, stride, knn_probes) if knn else None,
    )
    writer = None if as_json else SourceColours() if explain else PlainText()
    answer = asyncio.run(_answer(settings, asked, params, writer))
    if isinstance(writer, SourceColours):
        writer.legend()
    if as_json:
        emit_json({key: value for key, value in asdict(answer).items() if key != "results"})
    else:
        _print_sources(answer)


async def _answer(
    settings: Settings, question: Question, params: SamplingParams, writer: AnswerWriter | None
) -> Answer:
    """Run one question through the same parts that the service runs."""
    from service.answering.answer import collect
    from service.runtime import Runtime

    runtime = Runtime(settings)
    await runtime.start()
    try:
        with working(f"Loading {settings.model} …"):
            await runtime.ended.wait()
        if runtime.failure is not None:
            raise runtime.failure
        events = runtime.answerer.answer(question, params)
        return await collect(events if writer is None else _shown(events, writer))
    finally:
        await runtime.stop()


async def _shown(events: Any, writer: AnswerWriter) -> Any:
    """The same events; messages are also written to the terminal as they come."""
    async with aclosing(events):
        async for event in events:
            if event.type == "search_results":
                note(f"{event.data['mode']}: {event.data['mode_reason']}")
            elif event.type == "message":
                writer.write(event.data)
            yield event


def _print_sources(answer: Answer) -> None:
    emit_text("\n")
    for citation in answer.citations:
        mark = "verified" if citation["verified"] else "NOT in the text"
        place = f"{citation['name']}, page {citation['page']}, {citation['document']}:{citation['start']}"
        typer.echo(f"\n[{citation['label']}] {place}-{citation['end']} ({mark})")
        typer.echo(f"    {' '.join(citation['cited_text'].split())}")
    if answer.note and answer.note != answer.answer:
        note(f"\n{answer.note}")
    for sentence in answer.unsupported:
        note(f"Without support: {sentence['text']}")
    note(f"\n{_figures(answer.stats)}")


def _figures(stats: dict[str, Any]) -> str:
    """The statistics of an answer on one line."""
    parts = [f"{stats['prompt_tokens']} prompt tokens, {stats['output_tokens']} new"]
    if stats.get("ttft_s") is not None:
        parts.append(f"first after {stats['ttft_s']:.2f} s")
    if stats.get("decode_tokens_per_s"):
        parts.append(f"{stats['decode_tokens_per_s']:.1f} tokens/s")
    if stats.get("accepted_length"):
        parts.append(f"{stats['accepted_length']:.2f} tokens a step")
    parts.append(f"retrieval {stats['retrieval_ms']:.0f} ms")
    return "; ".join(parts)
