"""What each drafter can be told: one class of options a drafter, and how they are read from `key=value,…`."""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar, get_type_hints

from drafters.errors import DrafterError
from drafters.research.multi_round import RULES


def option(default: Any, text: str, least: float | None = None, most: float | None = None) -> Any:
    """A field of an options class: its default, what it means, and the bounds it must keep."""
    return field(default=default, metadata={"help": text, "least": least, "most": most})


@dataclass(frozen=True)
class Options:
    """What every drafter understands."""

    budget: int = option(32, "nodes of a tree at most", 0, 1024)


@dataclass(frozen=True)
class PromptLookupOptions(Options):
    ngram: int = option(3, "longest n-gram looked up", 1, 32)
    length: int = option(10, "tokens copied", 1, 256)


@dataclass(frozen=True)
class SuffixOptions(Options):
    factor: float = option(8.0, "depth at most this many times the match", 0.1, 100)
    min_match: int = option(1, "shortest match used", 1, 64)
    min_score: float = option(0.05, "path score below which a node is dropped", 0, 1)
    branching: int = option(4, "continuations considered of a node", 1, 64)


@dataclass(frozen=True)
class RecyclingOptions(Options):
    ranks: int = option(8, "successors kept of a token", 1, 32)
    depth: int = option(6, "longest path", 1, 32)
    min_score: float = option(0.03, "path score below which a node is dropped", 0, 1)


@dataclass(frozen=True)
class DatastoreOptions(Options):
    max_suffix: int = option(16, "longest suffix looked up", 1, 64)
    min_suffix: int = option(2, "shortest suffix used", 1, 64)
    matches: int = option(512, "continuations read", 1, 100_000)
    length: int = option(10, "tokens of a continuation", 1, 256)
    min_score: float = option(0.05, "path score below which a node is dropped", 0, 1)


@dataclass(frozen=True)
class ModelOptions(Options):
    depth: int = option(8, "longest path", 1, 64)
    width: int = option(1, "nodes run in one draft forward", 1, 64)
    branching: int = option(3, "children considered of a node", 1, 64)
    min_score: float = option(0.05, "path score below which a node is dropped", 0, 1)
    forwards: int = option(16, "draft forwards of a round at most", 1, 64)
    stop: float = option(1.0, "stop when a rejection is likelier than this (SpecDec++)", 0, 1)


@dataclass(frozen=True)
class AdaptiveOptions(ModelOptions):
    depth: int = option(20, "longest path", 1, 64)
    branching: int = option(1, "children considered of a node", 1, 64)
    forwards: int = option(20, "draft forwards of a round at most", 1, 64)
    stop: float = option(0.3, "stop when a rejection is likelier than this (SpecDec++)", 0, 1)


@dataclass(frozen=True)
class MultiRoundOptions(Options):
    rule: str = option("rsd", f"how children are judged: {', '.join(RULES)}; the distribution is kept, not the tokens")
    depth: int = option(4, "longest path", 1, 64)
    branching: int = option(2, "draws at a row", 1, 64)


@dataclass(frozen=True)
class RagOptions(ModelOptions):
    depth: int = option(16, "longest path", 1, 64)
    context: int = option(0, "tokens of the prompt that the drafter puts together itself; 0: a 16th of the whole", 0)
    chunk: int = option(256, "tokens of a chunk", 16)
    question: int = option(64, "last tokens of the prompt: the question", 1)
    target_mix: float = option(0.0, "RAPID's eta; above 0 the output distribution changes (lossy)", 0, 1000)


@dataclass(frozen=True)
class CascadeOptions(RagOptions):
    depth: int = option(16, "longest path", 1, 64)
    helper_budget: int = option(8, "nodes that the helper adds to a draft forward", 1, 64)


@dataclass(frozen=True)
class FusionOptions(RagOptions):
    prune: int = option(10, "a retrieval branch starts with one of the draft model's best so many", 1, 64)
    model: str = option("auto", "draft model: auto, none, rag or draft_model")
    always: bool = option(False, "ask the draft model in every round, whether it pays or not")


@dataclass(frozen=True)
class SelfSpeculationOptions(ModelOptions):
    skip: float = option(0.45, "share of the layers skipped at first", 0, 0.9)
    every: int = option(25, "rounds between searches of the layer set", 1)


@dataclass(frozen=True)
class GoodputOptions(Options):
    inner: str = option("suffix", "the drafter whose trees are cut")


@dataclass(frozen=True)
class OverlapOptions(Options):
    inner: str = option("draft_model", "the model drafter that drafts on: draft_model, rag or cascade")


Given = TypeVar("Given", bound=Options)


def read_options(drafter: str, kind: type[Given], text: str) -> Given:
    """`key=value,…` -> options; DrafterError names what is unknown, given twice or out of bounds."""
    known = {entry.name: entry for entry in fields(kind)}
    values: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals:
            raise DrafterError(f"drafter {drafter}: write options as key=value, not {item!r}")
        if key not in known:
            raise DrafterError(f"drafter {drafter} has no option {key!r}; it has {', '.join(known)}")
        if key in values:
            raise DrafterError(f"drafter {drafter}: option {key} is given twice")
        values[key] = _value(drafter, known[key], get_type_hints(kind)[key], value.strip())
    return kind(**values)


def describe_options(kind: type[Options]) -> dict[str, str]:
    """For help texts: option -> meaning and default."""
    return {entry.name: f"{entry.metadata['help']} ({entry.default})" for entry in fields(kind)}


def _value(name: str, entry: Field, kind: type, text: str) -> Any:
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise DrafterError(f"drafter {name}: {entry.name} must be true or false, not {text!r}")
        return text.lower() == "true"
    try:
        value = kind(text)
    except ValueError:
        raise DrafterError(
            f"drafter {name}: {entry.name} must be {'a whole number' if kind is int else 'a number'}, not {text!r}"
        ) from None
    least, most = entry.metadata["least"], entry.metadata["most"]
    if not (least is None or value >= least) or not (most is None or value <= most):
        raise DrafterError(
            f"drafter {name}: {entry.name}={text} is out of bounds ({least} to {'any' if most is None else most})"
        )
    return value
