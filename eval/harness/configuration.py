"""The options of `folio eval run`: flags over a YAML file over defaults, and the plan that they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from eval.errors import EvalError
from eval.harness.engines import OPENAI, AnswerEngine, LocalEngine, OpenAIEngine, Point
from eval.harness.prompting import PROMPT_SETS, LayoutPrompter, OfficialPrompter, OncePrompter, Prompter
from eval.harness.retrieving import RetrievalPrompter
from eval.harness.run import Plan
from eval.tasks.sources import sources
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loading.checkpoint import DTYPES, load_model, load_tokenizer
from service.models import layout_for, shown_name
from service.settings import EMBEDDED

LAYOUT_NEW_TOKENS = 96
"""Least budget of an answer in a layout, which quotes whole sentences where the official prompts want a word."""

KV_SLACK = 2048
"""Tokens of KV beyond the longest request, for draft trees and a drafter's own second sequence."""
LEAST_KV_MEMORY = 256 << 20


@dataclass(frozen=True)
class RunOptions:
    """What a run was asked to do; every field is a flag of the command and a key of the YAML file."""

    tasks: tuple[str, ...] = ()
    engine: tuple[str, ...] = ("dense",)
    length: tuple[int, ...] = ()
    limit: int | None = None
    output: Path | None = None
    data: str | None = None
    text: Path | None = None
    model: str = EMBEDDED
    tokenizer: str | None = None
    prompt: str | None = None
    seed: int = 0
    new_tokens: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = None
    kv_memory_mb: int | None = None
    window: int = 131_072
    together: bool = False

    @classmethod
    def load(cls, config: Path | None, flags: Mapping[str, Any]) -> RunOptions:
        """Flags that were given override the file, which overrides the defaults.

        Raises:
            EvalError: an unreadable file, an unknown key, a value of the wrong kind, or no tasks or output.
        """
        values = _read_yaml(config) if config else {}
        values |= {key: value for key, value in flags.items() if value not in (None, [])}
        known = {option.name for option in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise EvalError(f"{config} has an unknown key {unknown[0]!r}", hint=f"Keys are {', '.join(sorted(known))}.")
        options = cls(**{key: _convert(key, value) for key, value in values.items()})
        if not options.tasks:
            raise EvalError("no tasks", hint="Give --tasks passkey,kv_retrieval or the like.", param="tasks")
        if options.output is None:
            raise EvalError("no output folder", hint="Give --output DIR.", param="output")
        return options


def build_plan(options: RunOptions, command: str) -> Plan:
    """Load models and tokenizers, and resolve tasks, engines and prompts.

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
        least_new_tokens=LAYOUT_NEW_TOKENS if _prompt_kind(options) == "layout" else 0,
    )
    engines = _engines(options)
    assert options.output is not None
    return Plan(
        engines=engines,
        sources=named,
        lengths=options.length or (None,),
        limit=options.limit,
        new_tokens=options.new_tokens,
        output=options.output,
        arguments=_arguments(options),
        together=options.together,
        command=command,
    )


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
    kind = _prompt_kind(options)
    if retrieval:
        return RetrievalPrompter(tokenizer, layout_for(options.model, tokenizer))
    if kind == "layout":
        return LayoutPrompter(tokenizer, layout_for(options.model, tokenizer))
    if kind == "official":
        kind = "gpt4" if getattr(tokenizer, "chat_template", None) else "yarn"
    return OfficialPrompter(tokenizer, kind)


def _prompt_kind(options: RunOptions) -> str:
    """The prompt asked for; by default the layout for the embedded reader, which knows no other, else official."""
    kind = options.prompt or ("layout" if options.model == EMBEDDED else "official")
    if kind not in ("layout", "official", *PROMPT_SETS):
        raise EvalError(f"unknown prompt {kind!r}", hint="Choose layout, official, gpt4 or yarn.", param="prompt")
    return kind


def _endpoint_tokenizer(options: RunOptions) -> Any:
    name = options.tokenizer or options.model
    if name == EMBEDDED:
        from service.reader import MODEL_DIR

        name = str(MODEL_DIR)
    tokenizer = load_tokenizer(name)
    if tokenizer is None:
        raise EvalError(f"no tokenizer {name!r} for the endpoint", hint="Give --tokenizer.", param="tokenizer")
    return tokenizer


def _arguments(options: RunOptions) -> dict[str, Any]:
    """What every row of a folder shares; engines, tasks, lengths and the limit may grow from run to run."""
    return {
        "model": shown_name(options.model),
        "tokenizer": shown_name(options.tokenizer or options.model),
        "prompt": _prompt_kind(options),
        "truncation": "middle of the document" if _prompt_kind(options) == "layout" else "middle of the prompt",
        "data": Path(options.data).name if options.data else None,
        "text": options.text.name if options.text else None,
        "seed": options.seed,
        "new_tokens": options.new_tokens,
        "dtype": options.dtype,
        "together": options.together,
    }


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise EvalError(f"cannot read {path}: {error.strerror}", param="config") from error
    except yaml.YAMLError as error:
        raise EvalError(f"{path} is not YAML: {error}", param="config") from error
    if not isinstance(values, dict):
        raise EvalError(f"{path} is not a mapping of options", param="config")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def _convert(key: str, value: Any) -> Any:
    kind = str(get_type_hints(RunOptions)[key])
    try:
        if kind.startswith("tuple"):
            items = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
            items = [item.strip() if isinstance(item, str) else item for item in items]
            return tuple(_tokens(item) if "int" in kind else str(item) for item in items if item != "")
        if "Path" in kind:
            return Path(value).expanduser()
        return bool(value) if "bool" in kind else int(value) if "int" in kind else str(value)
    except (TypeError, ValueError) as error:
        raise EvalError(f"the option {key} cannot be {value!r}", param=key) from error


def _tokens(text: Any) -> int:
    """A length: 4096, or 4K."""
    said = str(text).strip()
    number = int(said[:-1]) * 1024 if said[-1:] in ("k", "K") else int(said)
    if number < 64:
        raise ValueError(said)
    return number
