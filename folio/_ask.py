"""A question, answered over documents with citations that are checked against their text."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from pydantic import ValidationError

from folio._llm import LLM
from retrieval.library import Library
from service.answering.answer import Answer, Answerer, collect
from service.answering.evidence import EvidenceFinder
from service.answering.question import Question
from service.engine.params import SamplingParams
from service.errors import InvalidRequest
from service.fields import refusal
from service.libraries import open_library
from service.models import layout_for
from service.settings import load_settings


def ask(
    question: str,
    files: Iterable[str | os.PathLike[str]] = (),
    *,
    llm: LLM | None = None,
    library: Library | None = None,
    params: SamplingParams | None = None,
    **options: Any,
) -> Answer:
    """Answer a question over the whole library, or over some files, which are ingested first where they are new.

    Args:
        llm: the model that answers; None loads the one that the settings name, for this question alone.
        library: where the documents are; None for the data folder of the settings.
        params: how tokens are chosen; None for greedily, as many as the settings allow.
        options: fields of `service.answering.question.Question`: mode, documents, collection, passages, history, ….

    Raises:
        InvalidRequest: an option or a file is refused. NotFound, PromptTooLong, ModelError: as they say.
    """
    try:
        asked = Question.model_validate({"question": question, **options})
    except ValidationError as error:
        raise refusal(error, lambda place: ".".join(map(str, place))) from error
    settings = load_settings()
    with ExitStack() as opened:
        if library is None:
            library = opened.enter_context(open_library(settings))
        results = library.ingest(files)
        failed = next((result for result in results if result.status == "failed"), None)
        if failed is not None:
            raise InvalidRequest(f"{failed.name} cannot be read: {failed.error}", param="files")
        if results:
            asked = asked.model_copy(update={"documents": tuple(result.id for result in results)})
        if llm is None:
            llm = opened.enter_context(LLM(settings.model))
        parameters = llm.engine.engine.loaded.num_parameters
        layout = layout_for(llm.name, llm.engine.tokenizer, lambda: library.ranker, parameters)
        finder = EvidenceFinder(library, layout, llm.engine.window, settings)
        answerer = Answerer(finder, llm.engine, layout)
        return asyncio.run(collect(answerer.answer(asked, params or SamplingParams(max_tokens=answerer.answer_tokens))))
