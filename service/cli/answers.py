"""`folio ask`: one question, answered on the terminal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel, ValidationError

from service.answering.question import AnswerOptions, Iterative, Knn, Question, Sampling
from service.cli.context import (
    LOCAL_OWNER,
    Attention,
    Collection,
    DeviceName,
    Drafter,
    Dtype,
    JsonFlag,
    ModelName,
    documents_of,
    settings_of,
)
from service.cli.explaining import AnswerWriter, PlainText, SourceColours
from service.cli.output import emit_json, emit_text, note, working
from service.engine.options import blends
from service.errors import InvalidRequest
from service.fields import refusal

if TYPE_CHECKING:
    from service.answering.answer import Answer
    from service.runtime import Runtime
    from service.settings import Settings


class Switch(StrEnum):
    ON = "on"
    OFF = "off"


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("ask")(ask)


def option(model: type[BaseModel], name: str, *flags: str, only: str = "") -> Any:
    """A flag for a field: its meaning, default and limits are the field's own. None: not given."""
    field = model.model_fields[name]
    default = f" [default: {field.default}]" if isinstance(field.default, (int, float, str)) else ""
    return typer.Option(*flags, help=f"{only}{field.description}{default}")


IN_STEPWISE, IN_KNN = "Modes iterative, flare and iter-retgen: ", "--knn: "


def ask(
    context: typer.Context,
    question: Annotated[str, typer.Argument(help="The question.", metavar="QUESTION")],
    document: Annotated[
        list[str] | None,
        typer.Option("--document", "-d", help="Answer from this id alone; may be repeated."),
    ] = None,
    collection: Collection = None,
    mode: Annotated[str | None, option(AnswerOptions, "mode")] = None,
    passages: Annotated[int | None, option(AnswerOptions, "passages")] = None,
    rerank: Annotated[bool, option(AnswerOptions, "rerank", "--rerank")] = False,
    wider: Annotated[bool, option(AnswerOptions, "wider", "--wider")] = False,
    refuse_below: Annotated[float | None, option(AnswerOptions, "refuse_below")] = None,
    speculate: Annotated[
        Switch,
        typer.Option(help="When searching under way, or --knn: guess what a search will find, verify later."),
    ] = Switch.ON,
    k: Annotated[int | None, option(Iterative, "k", "--k")] = None,
    theta: Annotated[float | None, option(Iterative, "theta")] = None,
    iterations: Annotated[int | None, option(Iterative, "iterations")] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="When searching under way, or --knn: guesses to one verification; default: as pays best."),
    ] = None,
    retriever: Annotated[str | None, option(Iterative, "retriever", only=IN_STEPWISE)] = None,
    knn: Annotated[
        bool, typer.Option("--knn", help="Decode with the documents' datastore (folio index build --knn).")
    ] = False,
    knn_k: Annotated[int | None, option(Knn, "k", only=IN_KNN)] = None,
    knn_weight: Annotated[float | None, option(Knn, "weight", only=IN_KNN)] = None,
    knn_temperature: Annotated[float | None, option(Knn, "temperature", only=IN_KNN)] = None,
    knn_probes: Annotated[int | None, option(Knn, "probes", only=IN_KNN)] = None,
    max_tokens: Annotated[int | None, option(Sampling, "max_tokens")] = None,
    temperature: Annotated[float | None, option(Sampling, "temperature")] = None,
    top_p: Annotated[float | None, option(Sampling, "top_p")] = None,
    seed: Annotated[int | None, option(Sampling, "seed")] = None,
    model: ModelName = None,
    dtype: Dtype = None,
    device: DeviceName = None,
    drafter: Drafter = None,
    attention: Attention = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Colour each token by who supplied it: a drafter or the model.")
    ] = False,
    receipt: Annotated[
        Path | None, typer.Option("--receipt", help="Write a signed receipt here, for folio verify.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Answer a question over the documents, with citations that are checked against their text."""
    own = attention if blends(attention) else None  # of this request: no engine has it as its default
    default = None if own else attention
    settings = settings_of(context, model=model, dtype=dtype, device=device, drafter=drafter, attention=default)
    guessing = {"speculate": speculate is Switch.ON, "stride": stride}
    neighbours = given(k=knn_k, weight=knn_weight, temperature=knn_temperature, probes=knn_probes, **guessing)
    try:
        asked = Question.model_validate(
            {
                "question": question,
                **given(mode=mode, documents=document, collection=collection, passages=passages),
                **given(refuse_below=refuse_below),
                "rerank": rerank,
                "wider": wider,
                "iterative": given(k=k, theta=theta, iterations=iterations, retriever=retriever, **guessing),
                "knn": neighbours if knn else None,
            }
        )
        chosen = given(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, attention=own)
        sampling = Sampling(**chosen)
    except ValidationError as error:
        raise refusal(error, flag) from error
    from service.models import check_request

    if receipt is not None:
        asked.check_recordable()
    check_request(settings, attention=own)  # all refusals come before the long wait for a model
    with documents_of(settings) as shelf:
        asked.check(shelf, LOCAL_OWNER)
    writer = None if as_json else SourceColours() if explain else PlainText()
    answer = asyncio.run(_answer(settings, asked, sampling, writer, receipt is not None))
    if receipt is not None:
        write_receipt(answer, receipt)
    if isinstance(writer, SourceColours):
        writer.legend()
        writer.claims(answer)
    if as_json:
        emit_json({key: value for key, value in asdict(answer).items() if key not in ("results", "receipt")})
    else:
        print_support(answer)


def given(**values: Any) -> dict[str, Any]:
    """Without those that were not given, so that each field keeps its own default."""
    return {name: value for name, value in values.items() if value is not None}


def flag(place: Sequence[int | str]) -> str:
    """How the command line writes a field of a question."""
    if place[0] == "question":
        return "QUESTION"
    names = [str(part) for part in place]
    shared = names[-1] in ("stride", "speculate")
    name = "document" if names[0] == "documents" else "_".join(names) if names[0] == "knn" and not shared else names[-1]
    return f"--{name.replace('_', '-')}"


async def _answer(
    settings: Settings, question: Question, sampling: Sampling, writer: AnswerWriter | None, receipt: bool
) -> Answer:
    """Run one question through the same parts that the service runs."""
    from service.answering.answer import collect

    runtime = await started(settings)
    try:
        params = sampling.params(runtime.answerer.answer_tokens, runtime.engine.sampling_defaults)
        record = runtime.receipts if receipt else None
        events = runtime.answerer.answer(question, params, LOCAL_OWNER, record)
        return await collect(events if writer is None else shown(question, events, writer))
    finally:
        await runtime.stop()


def write_receipt(answer: Answer, path: Path) -> None:
    """Raises InvalidRequest: there is no place for it."""
    try:
        path.write_text(json.dumps(answer.receipt, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(
            f"The receipt cannot be written to {path}: {error.strerror}.", param="--receipt"
        ) from error


async def started(settings: Settings) -> Runtime:
    """The parts of a service with their model loaded; to be stopped. Raises FolioError: there is no such model."""
    from service.runtime import Runtime

    runtime = Runtime(settings)
    await runtime.start()
    try:
        with working(f"Loading {settings.model} …"):
            await runtime.ended.wait()
        if runtime.failure is not None:
            raise runtime.failure
    except BaseException:
        await runtime.stop()
        raise
    return runtime


async def shown(question: Question, events: Any, writer: AnswerWriter) -> Any:
    """The same events; messages are also written to the terminal as they come."""
    async with aclosing(events):
        async for event in events:
            if event.type == "search_results":
                note(f"{event.data['mode']}: {event.data['mode_reason']}")
                if event.data["query"] not in (None, question.text):
                    note(f"searched for: {event.data['query']}")
            elif event.type == "message":
                writer.write(event.data)
            yield event


def print_support(answer: Answer) -> None:
    """The citations of each supported claim, and the claims without support."""
    emit_text("\n")
    print_citations(answer.citations)
    if answer.refused:
        note("\nNo answer: by what was read, the documents do not say.")
        print_proof(answer.proof or {})
    if answer.note and answer.note != answer.answer:
        note(f"\n{answer.note}")
    for claim in answer.claims:
        if claim["support"] == "none":
            note(f"Without support: {claim['text']}")
    note(f"\n{_figures(answer.stats)}")


def print_citations(citations: Sequence[Mapping[str, Any]]) -> None:
    """Where each stands, and how it carries its claim."""
    for number, citation in enumerate(citations, start=1):
        mark = citation["support"] if citation["verified"] else "no longer in the text"
        where = f", {citation['place']}" if citation["place"] else ""
        place = f"{citation['name']}{where}, {citation['document']}:{citation['start']}"
        typer.echo(f"\n[{number}] {place}-{citation['end']} ({mark})")
        typer.echo(f"    {' '.join(citation['cited_text'].split())}")


def print_proof(proof: dict[str, Any]) -> None:
    """What was read and searched, the passages that came nearest, and how to search wider."""
    for document in proof.get("read_whole", []):
        note(f"Read whole: {document['name']} ({document['chars']:,} characters)")
    for search in proof.get("searches", []):
        note(f"Searched ({search['mode']}): {search['query']}; {search['passages']} passages")
    for one in proof.get("considered", []):
        place = f", {one['place']}" if one["place"] else ""
        note(f"  {one['name']}{place}: {one['sentence']}\n    {one['why']}")
    wider = proof.get("wider")
    if wider is not None:
        everywhere = "" if "documents" not in wider else ", without --document and --collection"
        note(f"To search wider: --mode retrieval --wider{everywhere}.")


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
    if stats.get("lossy"):
        parts.append(f"lossy: {stats['drafter'] if stats['attention'] == 'dense' else stats['attention']}")
    return "; ".join(parts)
