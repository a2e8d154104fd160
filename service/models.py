"""From the settings to an engine that runs, and the prompt layout of its model."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.answering.prompting.layouts import ChatLayout, PlainLayout, PromptLayout, choose_layout
from service.errors import ModelError
from service.settings import EMBEDDED, Settings

if TYPE_CHECKING:
    from retrieval.ranking.ranker import SentenceRanker
    from service.engine.async_engine import AsyncEngine
    from service.engine.sampling.grammars import Constraint


_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")


def load_engine(settings: Settings, **options: Any) -> AsyncEngine:
    """The door to the model that the settings name, still shut; `options` go over the settings' own.

    Takes seconds to minutes.

    Raises:
        ModelError: it cannot be found, read or run; the message names it and the remedy.
        InvalidRequest: an option is wrong; no weights have been read.
    """
    from transformers.utils.logging import disable_progress_bar

    from service.engine.async_engine import AsyncEngine

    disable_progress_bar()  # of the weights: it would mix with our own, and with --json on a terminal
    logging.getLogger("huggingface_hub").handlers.clear()  # its own: what it says is in our log, as JSON if wanted
    return AsyncEngine.from_pretrained(settings.model, settings.engine, **options)


def check_request(
    settings: Settings, drafter: str | None = None, attention: str | None = None, constraint: Constraint | None = None
) -> None:
    """Refuse what can be known of a request, or of the settings' defaults, before the model is loaded.

    Raises:
        InvalidRequest: there is no such drafter or policy, or the grammar is bad. ModelError: there is no such model.
    """
    from service.engine.checks import check_options, shape_of

    if not _HUB_ID.fullmatch(settings.model) and not Path(settings.model).expanduser().exists():
        raise ModelError(
            f"No model {settings.model!r}: there is no such path, and no hub id is written so.",
            hint="Give a folder with config.json and safetensors, a GGUF file, a hub id, 'embedded' or 'smollm2'.",
            param="model",
        )
    policy = attention or settings.attention
    named = policy if policy != Settings.model_fields["attention"].default else None  # which suits every model
    check_options(drafter or settings.drafter, named, constraint, lambda: shape_of(settings.model, settings.engine))


def check_shares_of(settings: Settings) -> None:
    """Refuse a model whose heads ``tensor_parallel`` ranks cannot share, before any of them starts.

    Raises:
        ModelError: as `load_engine`, of a model that is not there or cannot be shared.
    """
    from service.engine.loading.checkpoint import read_config
    from service.engine.loading.device import check_device
    from service.engine.loading.support import check_shares

    check_device(settings.engine.resolved().device)
    check_shares(settings.model, read_config(settings.model), settings.tensor_parallel)


def layout_for(
    model: str,
    tokenizer: Any,
    ranker: Callable[[], SentenceRanker] | None = None,
    parameters: int | None = None,
) -> PromptLayout:
    """How the model is asked about documents.

    ranker: chooses what the embedded reader quotes; without it the model chooses alone.
    parameters: of the model, None where that is not known; a small one is asked in other words than a large one.
    """
    if model == EMBEDDED:
        from service.reader.choosing import SentenceChooser
        from service.reader.layout import ReaderLayout

        chooser = (lambda: SentenceChooser(ranker())) if ranker is not None else None
        return ReaderLayout(copy.deepcopy(tokenizer), chooser)  # the engine's thread decodes with the original
    return choose_layout(tokenizer, parameters)


def chat_layout_for(tokenizer: Any) -> ChatLayout | PlainLayout:
    """How the model holds a plain conversation."""
    return choose_layout(tokenizer)


def shown_name(model: str) -> str:
    """The name under which the API lists a model: the folder's or file's own name, never a path of this machine."""
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        return path.stem
    return path.resolve().name if path.is_dir() else model
