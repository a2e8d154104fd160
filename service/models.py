"""From the settings to an engine that runs, and the prompt layout of its model."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.answering.prompting import ChatLayout, PlainLayout, PromptLayout, choose_layout
from service.errors import ModelError
from service.settings import EMBEDDED, Settings

if TYPE_CHECKING:
    from service.engine.engine import Engine


def load_engine(settings: Settings) -> Engine:
    """Load the model that the settings name; takes seconds to minutes.

    Raises:
        ModelError: it cannot be found, read or run; the message names it and the remedy.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    from service.engine.engine import Engine
    from service.engine.loading.checkpoint import DTYPES
    from sparse_attn.kernels import select_kernels

    disable_progress_bar()  # of the weights: it would mix with our own, and with --json on a terminal
    logging.getLogger("huggingface_hub").handlers.clear()  # its own: what it says is in our log, as JSON if wanted
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = device_of(settings)
    dtype = dtype_of(settings, device)
    select_kernels(torch.device(device), DTYPES[dtype], settings.attention_backend)  # refuses what is not here
    shared = settings.tensor_parallel > 1
    if shared and settings.host_memory:
        raise ModelError(
            "FOLIO_HOST_MEMORY keeps the pages of one process; with --tp they lie in several.",
            hint="Set it to 0.",
            param="host_memory",
        )
    return Engine.from_pretrained(
        settings.model,
        dtype=dtype,
        device=device,
        kv_memory=int(settings.kv_memory),
        kv_dtype=settings.kv_dtype,
        kv_groups=settings.kv_groups,
        max_model_len=settings.max_model_len,
        prefix_cache=settings.prefix_cache,
        host_memory=int(settings.host_memory),
        warm_folder=None if shared else settings.home.expanduser() / "kv",
        max_step_tokens=settings.step_tokens,
        max_running=settings.max_running,
        max_waiting=settings.queue_limit + settings.max_running,
        attention=settings.attention,
        drafter=settings.drafter,
        draft_model=settings.draft_model,
        tensor_parallel=settings.tensor_parallel,
        cuda_graphs=settings.cuda_graphs,
        attention_backend=settings.attention_backend,
    )


def device_of(settings: Settings) -> str:
    """The device that the settings name; auto is a GPU where there is one."""
    import torch

    if settings.device != "auto":
        return settings.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype_of(settings: Settings, device: str) -> str:
    """The precision that the settings name; auto is bfloat16 on a GPU and float32 on a CPU."""
    if settings.dtype != "auto":
        return settings.dtype
    return "float32" if device == "cpu" else "bfloat16"


def check_shares_of(settings: Settings) -> None:
    """Refuse a model whose heads ``tensor_parallel`` ranks cannot share, before any of them starts.

    Raises:
        ModelError: as `load_engine`, of a model that is not there or cannot be shared.
    """
    from service.engine.loading.checkpoint import read_config
    from service.engine.loading.device import check_device
    from service.engine.loading.support import check_shares

    check_device(device_of(settings))
    check_shares(settings.model, read_config(settings.model), settings.tensor_parallel)


def layout_for(model: str, tokenizer: Any) -> PromptLayout:
    """How the model is asked about documents."""
    if model == EMBEDDED:
        from service.reader.layout import ReaderLayout

        return ReaderLayout(copy.deepcopy(tokenizer))  # the engine's thread decodes with the original
    return choose_layout(tokenizer)


def chat_layout_for(tokenizer: Any) -> ChatLayout | PlainLayout:
    """How the model holds a plain conversation."""
    return choose_layout(tokenizer)


def shown_name(model: str) -> str:
    """The name under which the API lists a model: the folder's or file's own name, never a path of this machine."""
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        return path.stem
    return path.resolve().name if path.is_dir() else model
