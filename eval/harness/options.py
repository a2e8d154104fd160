"""The options of `folio eval run`: flags over a YAML file over defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from typer import Option

from eval.errors import EvalError
from eval.harness.prompting import PROMPT_SETS
from eval.options import Separated, read
from service.models import shown_name
from service.settings import EMBEDDED


def tokens(text: Any) -> int:
    """A length: 4096, or 4K.

    Raises:
        ValueError: it is no number, or below 64.
    """
    said = str(text).strip()
    number = int(said[:-1]) * 1024 if said[-1:] in ("k", "K") else int(said)
    if number < 64:
        raise ValueError(said)
    return number


def positive(text: Any) -> int:
    """A number of examples.

    Raises:
        ValueError: it is no number, or none.
    """
    number = int(str(text))
    if number < 1:
        raise ValueError(text)
    return number


@dataclass(frozen=True)
class RunOptions:
    """What a run was asked to do; every field is a flag of the command and a key of the YAML file."""

    tasks: Annotated[tuple[str, ...], Separated(), Option(help="Tasks, separated by commas.")] = ()
    suite: Annotated[
        tuple[str, ...],
        Separated(),
        Option(help="All tasks of infinitebench, ruler, babilong or scbench that can be made of what is given."),
    ] = ()
    engine: Annotated[
        tuple[str, ...],
        Option(help="What answers: dense, auto, lserve, fusion, rapid, lserve+fusion, retrieval, openai:URL:MODEL."),
    ] = ("dense",)
    length: Annotated[
        tuple[int, ...],
        Separated(item=tokens),
        Option(help="Tokens of prompt and answer, separated by commas; by default what the engine's window holds."),
    ] = ()
    limit: Annotated[
        tuple[int, ...],
        Separated(item=positive),
        Option(help="Examples of each task: one number, or one for each length, separated by commas."),
    ] = ()
    output: Annotated[
        Path | None,
        Option(help="Folder of results; a run there is resumed. Several models have one each in it. Default: results."),
    ] = None
    data: Annotated[str | None, Option(help="Folder of official JSONL, hub, or a file of LongBench or HELMET.")] = None
    text: Annotated[
        Path | None, Option(help="Folder of text for quote; for qa_1 and qa_2 a file of SQuAD's format.")
    ] = None
    model: Annotated[
        tuple[str, ...], Option(help="embedded, a folder, or a hub id; several are asked one after the other.")
    ] = (EMBEDDED,)
    tokenizer: Annotated[str | None, Option(help="Tokenizer for endpoints: folder or hub id.")] = None
    prompt: Annotated[str | None, Option(help="layout, official, gpt4 or yarn.")] = None
    seed: Annotated[int, Option(min=0, help="Of the generated tasks.")] = 0
    new_tokens: Annotated[int | None, Option(min=1, help="Most new tokens, in place of the tasks' own budgets.")] = None
    dtype: Annotated[str, Option(help="Precision of the model.")] = "auto"
    device: Annotated[str, Option(help="cpu, cuda or auto.")] = "auto"
    threads: Annotated[int | None, Option(min=1, help="CPU threads.")] = None
    kv_memory_mb: Annotated[int | None, Option(min=1, help="Memory for KV, in MiB.")] = None
    window: Annotated[int, Option(min=16, help="Longest prompt and answer of an endpoint.")] = 131_072
    together: Annotated[
        bool, Option("--together", help="Ask all engines an example before the next; they share its cached prefix.")
    ] = False

    @classmethod
    def load(cls, config: Path | None, flags: Mapping[str, Any]) -> RunOptions:
        """Flags that were given override the file, which overrides the defaults.

        Raises:
            EvalError: an unreadable file, an unknown key, a value of the wrong kind, or no tasks.
        """
        values = _read_yaml(config) if config else {}
        known = {option.name for option in fields(cls)}
        unknown = sorted(values.keys() - known)
        if unknown:
            raise EvalError(f"{config} has an unknown key {unknown[0]!r}", hint=f"Keys are {', '.join(sorted(known))}.")
        options = read(cls, {key: value for key, value in {**values, **flags}.items() if value is not None})
        if not options.tasks and not options.suite:
            raise EvalError("no tasks", hint="Give --suite ruler, or --tasks passkey,quote or the like.", param="tasks")
        if len(options.limit) > 1 and len(options.limit) != len(options.length):
            raise EvalError(
                f"{len(options.limit)} limits for {len(options.length)} lengths",
                hint="Give one for all, or one for each.",
                param="limit",
            )
        return options

    def of_each_model(self) -> list[RunOptions]:
        """What each model is asked to do."""
        if len(self.model) == 1:
            return [self]
        folders = [_folder_of(model) for model in self.model]
        if twice := next((name for name in folders if folders.count(name) > 1), None):
            raise EvalError(f"two models are called {twice!r}", hint="Ask them in two runs.", param="model")
        folder = self.output or Path("results")
        return [replace(self, model=(model,), output=folder / _folder_of(model)) for model in self.model]

    @property
    def checkpoint(self) -> str:
        """The only model."""
        [model] = self.model
        return model

    @property
    def folder(self) -> Path:
        """Where the results go: one folder a model unless another is named."""
        return self.output or Path("results") / _folder_of(self.checkpoint)

    def limit_at(self, length: int | None) -> int | None:
        """Examples of each task at one of the lengths; None for all that there are."""
        if len(self.limit) > 1 and length is not None:
            return self.limit[self.length.index(length)]
        return max(self.limit, default=None)

    @property
    def prompt_kind(self) -> str:
        """The prompt asked for; by default the layout for the embedded reader, which knows no other, else official.

        Raises:
            EvalError: there is no such prompt.
        """
        kind = self.prompt or ("layout" if self.checkpoint == EMBEDDED else "official")
        if kind not in ("layout", "official", *PROMPT_SETS):
            raise EvalError(f"unknown prompt {kind!r}", hint="Choose layout, official, gpt4 or yarn.", param="prompt")
        return kind

    def arguments(self) -> dict[str, Any]:
        """What every row of a folder shares; engines, tasks, lengths and the limit may grow from run to run."""
        return {
            "model": shown_name(self.checkpoint),
            "tokenizer": shown_name(self.tokenizer or self.checkpoint),
            "prompt": self.prompt_kind,
            "truncation": f"middle of the {'document' if self.prompt_kind == 'layout' else 'prompt'}",
            "data": Path(self.data).name if self.data else None,
            "text": self.text.name if self.text else None,
            "seed": self.seed,
            "new_tokens": self.new_tokens,
            "dtype": self.dtype,
            "together": self.together,
        }


def _folder_of(model: str) -> str:
    return Path(shown_name(model)).name


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
