"""What a run does: models and tokenizers loaded, tasks, engines and prompts resolved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.errors import EvalError
from eval.harness.engines import OPENAI, AnswerEngine, LocalEngine, OpenAIEngine, Point
from eval.harness.jsonl import Problem
from eval.harness.options import RunOptions
from eval.harness.prompting import LayoutPrompter, OfficialPrompter, OncePrompter, Prompter
from eval.harness.retrieving import RetrievalPrompter
from eval.tasks.sources import Source, sources
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loading.checkpoint import DTYPES, load_model, load_tokenizer
from service.models import layout_for
from service.settings import EMBEDDED

LAYOUT_NEW_TOKENS = 96
"""Least budget of an answer in a layout, which quotes whole sentences where the official prompts want a word."""

KV_SLACK = 2048
"""Tokens of KV beyond the longest request, for draft trees and a drafter's own second sequence."""
LEAST_KV_MEMORY = 256 << 20


@dataclass
class Plan:
    """Everything that a run does.

    Attributes:
        engines: engines with the prompter that each is asked through.
        sources: where the examples of each task come from.
        command: the command line, for the results.
        problems: receives what was wrong with lines of the data.
    """

    options: RunOptions
    engines: Sequence[tuple[AnswerEngine, Prompter]]
    sources: Sequence[Source]
    command: str = ""
    problems: list[Problem] = field(default_factory=list)


def build_plan(options: RunOptions, command: str) -> Plan:
    """Resolve what the options name, and load it.

    Raises:
        FolioError: an unknown task, engine or model; data that is not there.
    """
    named = sources(
        options.tasks,
        data=options.data,
        text=options.text,
        count=options.limit,
        seed=options.seed,
        new_tokens=options.new_tokens,
        least_new_tokens=LAYOUT_NEW_TOKENS if options.prompt_kind == "layout" else 0,
    )
    return Plan(options, _engines(options), named, command)


def _engines(options: RunOptions) -> list[tuple[AnswerEngine, Prompter]]:
    """Every engine with its prompter, one for all that are asked alike: what it made for one serves the others."""
    points = {name: Point.parse(name) for name in options.engine if not name.startswith(OPENAI)}
    loaded = _load(options) if points else None
    prompters: dict[tuple[bool, bool], Prompter] = {}
    found: list[tuple[AnswerEngine, Prompter]] = []
    for name in dict.fromkeys(options.engine):
        retrieval = name in points and points[name].retrieval
        alike = (name in points, retrieval)
        if alike not in prompters:
            tokenizer = loaded.tokenizer if loaded and name in points else _endpoint_tokenizer(options)
            prompters[alike] = OncePrompter(_prompter(options, tokenizer, retrieval=retrieval))
        if name in points:
            assert loaded is not None
            engine: AnswerEngine = LocalEngine(loaded, points[name])
        else:
            engine = OpenAIEngine(name, window=options.window)
        found.append((engine, prompters[alike]))
    return found


def _load(options: RunOptions) -> Engine:
    """One engine for all points; a prompt costs every point the same, unless they are asked together."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    dtype = options.dtype if options.dtype != "auto" else "float32" if device == "cpu" else "bfloat16"
    loaded = load_model(options.model, dtype, device)
    if loaded.tokenizer is None:
        raise EvalError(f"the model {options.model!r} has no tokenizer", hint="Evaluations need text.", param="model")
    longest = min(max(options.length, default=loaded.max_len), loaded.max_len)
    prompts = 2 if options.together else 1
    enough = prompts * (longest + KV_SLACK) * loaded.kv_shape.bytes_per_token(DTYPES[dtype])
    kv_memory = options.kv_memory_mb << 20 if options.kv_memory_mb else max(enough, LEAST_KV_MEMORY)
    return Engine(loaded, EngineConfig(dtype, device, kv_memory, prefix_cache=options.together))


def _prompter(options: RunOptions, tokenizer: Any, *, retrieval: bool) -> Prompter:
    kind = options.prompt_kind
    if retrieval:
        return RetrievalPrompter(tokenizer, layout_for(options.model, tokenizer))
    if kind == "layout":
        return LayoutPrompter(tokenizer, layout_for(options.model, tokenizer))
    if kind == "official":
        kind = "gpt4" if getattr(tokenizer, "chat_template", None) else "yarn"
    return OfficialPrompter(tokenizer, kind)


def _endpoint_tokenizer(options: RunOptions) -> Any:
    name = options.tokenizer or options.model
    if name == EMBEDDED:
        from service.reader import MODEL_DIR

        name = str(MODEL_DIR)
    tokenizer = load_tokenizer(name)
    if tokenizer is None:
        raise EvalError(f"no tokenizer {name!r} for the endpoint", hint="Give --tokenizer.", param="tokenizer")
    return tokenizer
