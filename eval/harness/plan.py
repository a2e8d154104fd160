"""What a run does: models and tokenizers loaded, tasks, engines and prompts resolved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from eval.errors import EvalError
from eval.harness.engines import EVERYBODY, OPENAI, AnswerEngine, LocalEngine, OpenAIEngine, Point
from eval.harness.jsonl import Problem
from eval.harness.options import RunOptions
from eval.harness.prompting import LayoutPrompter, OfficialPrompter, OncePrompter, Prompter
from eval.harness.retrieving import RetrievalPrompter
from eval.tasks.sources import Source, sources, tasks_of_suites
from service.engine.async_engine import AsyncEngine
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

    Enter it to start the engine of this process, if a point of it is asked.

    Attributes:
        engines: engines with the prompter that each is asked through.
        sources: where the examples of each task come from.
        command: the command line, for the results.
        local: the engine of this process.
        problems: receives what was wrong with lines of the data.
        left_out: tasks of the suites that cannot be made of what was given, each with what it lacks, and lengths that
            an engine does not hold.
    """

    options: RunOptions
    engines: Sequence[tuple[AnswerEngine, Prompter]]
    sources: Sequence[Source]
    command: str = ""
    local: AsyncEngine | None = None
    problems: list[Problem] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for engine, _ in self.engines:
            for length in self.options.length:
                if not self.holds(engine, length):
                    self.left_out[f"{engine.name} at {length}"] = f"of {engine.window} tokens at most"

    def holds(self, engine: AnswerEngine, length: int | None) -> bool:
        """Whether an engine is asked at a length."""
        return length is None or length <= engine.window

    def __enter__(self) -> Plan:
        if self.local is not None:
            self.local.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.local is not None:
            self.local.stop()


def build_plan(options: RunOptions, command: str) -> Plan:
    """Resolve what the options name, and load it.

    Raises:
        FolioError: an unknown task, suite, engine or model; data that is not there.
    """
    in_suites, left_out = tasks_of_suites(options.suite, data=options.data, text=options.text)
    named = sources(
        [*options.tasks, *in_suites],
        data=options.data,
        text=options.text,
        count=max(options.limit, default=None),
        seed=options.seed,
        new_tokens=options.new_tokens,
        least_new_tokens=LAYOUT_NEW_TOKENS if options.prompt_kind == "layout" else 0,
    )
    points = {name: Point.parse(name) for name in options.engine if not name.startswith(OPENAI)}
    local = _load(options, any(source.shares for source in named)) if points else None
    return Plan(options, _engines(options, points, local), named, command, local, left_out=dict(left_out))


def _engines(
    options: RunOptions, points: Mapping[str, Point], local: AsyncEngine | None
) -> list[tuple[AnswerEngine, Prompter]]:
    """Every engine with its prompter, one for all that are asked alike: what it made for one serves the others."""
    prompters: dict[tuple[bool, bool], Prompter] = {}
    found: list[tuple[AnswerEngine, Prompter]] = []
    for name in dict.fromkeys(options.engine):
        retrieval = name in points and points[name].retrieval
        alike = (name in points, retrieval)
        if alike not in prompters:
            loaded = local.engine.loaded if local and name in points else None
            tokenizer = loaded.tokenizer if loaded else _endpoint_tokenizer(options)
            count = loaded.num_parameters if loaded else None
            prompters[alike] = OncePrompter(_prompter(options, tokenizer, count, retrieval=retrieval))
        if name in points:
            assert local is not None
            owner = EVERYBODY if options.together else name
            engine: AnswerEngine = LocalEngine(local, points[name], owner)
        else:
            engine = OpenAIEngine(name, window=options.window)
        found.append((engine, prompters[alike]))
    return found


def _load(options: RunOptions, keeps: bool) -> AsyncEngine:
    """One engine for all points; a prompt costs every point the same, unless they are asked together.

    keeps: whether the examples share contexts, which it then keeps for the point that read them.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    cached = options.together or keeps
    config = EngineConfig.of(dtype=options.dtype, device=options.device, prefix_cache=cached).resolved()
    loaded = load_model(options.checkpoint, config.dtype, config.device)
    if loaded.tokenizer is None:
        raise EvalError(
            f"the model {options.checkpoint!r} has no tokenizer", hint="Evaluations need text.", param="model"
        )
    longest = min(max(options.length, default=loaded.max_len), loaded.max_len)
    prompts = 2 if cached else 1
    enough = prompts * (longest + KV_SLACK) * loaded.kv_shape.bytes_per_token(DTYPES[loaded.dtype])
    kv_memory = options.kv_memory_mb << 20 if options.kv_memory_mb else max(enough, LEAST_KV_MEMORY)
    return AsyncEngine(Engine(loaded, config.model_copy(update={"kv_memory": kv_memory})))


def _prompter(options: RunOptions, tokenizer: Any, parameters: int | None, *, retrieval: bool) -> Prompter:
    kind = options.prompt_kind
    if retrieval:
        return RetrievalPrompter(tokenizer, layout_for(options.checkpoint, tokenizer, parameters=parameters))
    if kind == "layout":
        return LayoutPrompter(tokenizer, layout_for(options.checkpoint, tokenizer, parameters=parameters))
    if kind == "official":
        kind = "gpt4" if getattr(tokenizer, "chat_template", None) else "yarn"
    return OfficialPrompter(tokenizer, kind)


def _endpoint_tokenizer(options: RunOptions) -> Any:
    name = options.tokenizer or options.checkpoint
    if name == EMBEDDED:
        from service.reader import MODEL_DIR

        name = str(MODEL_DIR)
    tokenizer = load_tokenizer(name)
    if tokenizer is None:
        raise EvalError(f"no tokenizer {name!r} for the endpoint", hint="Give --tokenizer.", param="tokenizer")
    return tokenizer
