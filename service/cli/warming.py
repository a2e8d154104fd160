"""`folio docs warm`: a document's KV on disk, so that the next service answers questions on it at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.context import LOCAL_OWNER, Attention, JsonFlag, ModelName, library_of, settings_of
from service.cli.output import emit_json, emit_text, working
from service.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retrieval.types import Document, Hit
    from service.answering.prompting.layouts import PromptLayout
    from service.engine.async_engine import AsyncEngine


def register(docs: typer.Typer) -> None:
    """Add the command of this file to `folio docs`."""
    docs.command("warm")(warm)


def warm(
    context: typer.Context,
    document: Annotated[str, typer.Argument(help="Id of the document.", metavar="ID")],
    model: ModelName = None,
    attention: Attention = None,
    passages: Annotated[bool, typer.Option("--passages", help="Each passage alone, for the policy blend.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Read a document once and keep its KV on disk; questions in mode long then start decoding at once."""
    from service.models import layout_for, load_engine

    settings = settings_of(context, model=model, attention=attention)
    with library_of(settings) as library:
        found = library.document(document, LOCAL_OWNER)
        text = library.text(found.id, owner=LOCAL_OWNER)
        chunks = library.chunks(found.id, LOCAL_OWNER) if passages else []
    with working(f"Loading {settings.model} …"):
        engine = load_engine(settings)
    tokenizer, size = engine.tokenizer, settings.page_size
    if tokenizer is None:
        raise InvalidRequest(f"The model {settings.model!r} has no tokenizer to read a document with.", param="model")
    layout = layout_for(settings.model, tokenizer, parameters=engine.engine.loaded.num_parameters)
    if passages:
        _warm_passages(engine, layout, found, chunks, as_json)
        return
    prefix = shared_prefix(layout, found, text)
    with working(f"Reading {found.name}: {len(prefix):,} tokens …"), engine:
        path = engine.warm(found.id, prefix, settings.attention)
    tokens = len(prefix) // size * size
    if as_json:
        emit_json({"document": found.id, "name": found.name, "tokens": tokens, "bytes": path.stat().st_size})
    else:
        emit_text(f"{found.name}: {tokens:,} tokens kept, {path.stat().st_size / 1e6:.1f} MB\n")


def _warm_passages(
    engine: AsyncEngine, layout: PromptLayout, document: Document, chunks: Sequence[Hit], as_json: bool
) -> None:
    """Keep the KV of each passage. Raises InvalidRequest for a model whose prompts do not tell where passages lie."""
    from service.warming import passage_prompts

    known = passage_prompts(layout, chunks)
    with working(f"Reading {len(known):,} passages of {document.name} …"), engine:
        paths = engine.warm_passages(document.id, known)
    size = sum(path.stat().st_size for path in paths)
    tokens = sum(len(span) for _, spans in known for span in spans.passages)
    told = {"document": document.id, "name": document.name, "passages": len(known), "tokens": tokens, "bytes": size}
    if as_json:
        emit_json(told)
    else:
        emit_text(f"{document.name}: {len(known):,} passages of {tokens:,} tokens kept, {size / 1e6:.1f} MB\n")


def shared_prefix(layout: PromptLayout, document: Document, text: str) -> list[int]:
    """The tokens that prompts over the whole document begin with, whatever is asked."""
    from service.answering.prompting.layouts import Passage

    passage = Passage(document.id, document.name, 0, len(text), None, text)
    one, other = (layout.build(question, [passage]).ids for question in ("Who?", "And when was it?"))
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:same]
