"""What each drafter can be told: one class of options a drafter, which bears its name."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from drafters.errors import DrafterError

RULES = ("rsd", "specinfer", "spectr")  # of `multi_round`
FUSED = ("auto", "none", "trained", "rag", "draft_model")  # the draft models of `fusion`
READERS = ("self", "draft_model")  # the models of `rag`
TRAINABLE = (
    "medusa", "hydra", "clover", "eagle", "fspad", "eagle3", "chimera", "falcon", "s2d", "dflash", "kangaroo",
    "mtp", "ppd", "tidar",
)  # fmt: skip
"""The members of the family of trained drafters, `heads.head.HEADS`."""
_TEXTS = frozenset({"documents", "datastore"})  # what the free sources copy from


def option(
    default: Any, text: str, least: float | None = None, most: float | None = None, choices: tuple[str, ...] = ()
) -> Any:
    """A field of an options class: its default, what it means, and the bounds or choices that it must keep to."""
    return field(default=default, metadata={"help": text, "least": least, "most": most, "choices": choices})


@dataclass(frozen=True)
class Options:
    """A drafter as it is asked for: the base of all options, and what every drafter understands.

    name   of the drafter, as users write it
    keyed  whether the tokens are those of plain decoding, rather than others of the same distribution

    Raises:
        DrafterError: a value is out of its bounds, or none of its choices.
    """

    budget: int = option(32, "nodes of a tree at most", 0, 1024)

    name: ClassVar[str]
    keyed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            least, most, choices = (entry.metadata.get(key) for key in ("least", "most", "choices"))
            if not (least is None or value >= least) or not (most is None or value <= most):
                bounds = f"{least} to {'any' if most is None else most}"
                raise DrafterError(f"drafter {self.name}: {entry.name}={value} is out of bounds ({bounds})")
            if choices and value not in choices:
                raise DrafterError(
                    f"drafter {self.name}: {entry.name} must be one of {', '.join(choices)}, not {value!r}"
                )

    def __str__(self) -> str:
        return self.name

    @property
    def lossy(self) -> bool:
        """Whether the output distribution differs from the target's own."""
        return False

    @property
    def draws_on(self) -> frozenset[str]:
        """What it reads where it is there: of the request "documents", "datastore" and "draft_prompt", of the engine
        "draft_model"."""
        return frozenset()

    @property
    def reads(self) -> DraftPromptOptions | None:
        """Of a drafter whose model reads retrieved passages in place of the prompt: which."""
        return None

    @classmethod
    def describe(cls) -> dict[str, str]:
        """For help texts: option -> meaning and default."""
        return {entry.name: f"{entry.metadata['help']} ({entry.default})" for entry in fields(cls)}


@dataclass(frozen=True)
class NoDrafterOptions(Options):
    name = "none"


@dataclass(frozen=True)
class AutoOptions(Options):
    name = "auto"
    draws_on = _TEXTS


@dataclass(frozen=True)
class PromptLookupOptions(Options):
    name = "prompt_lookup"

    ngram: int = option(3, "longest n-gram looked up", 1, 32)
    length: int = option(10, "tokens copied", 1, 256)


@dataclass(frozen=True)
class SuffixOptions(Options):
    name = "suffix"
    draws_on = frozenset({"documents"})

    factor: float = option(8.0, "depth at most this many times the match", 0.1, 100)
    min_match: int = option(1, "shortest match used", 1, 64)
    min_score: float = option(0.05, "path score below which a node is dropped", 0, 1)
    branching: int = option(4, "continuations considered of a node", 1, 64)


@dataclass(frozen=True)
class RecyclingOptions(Options):
    name = "recycling"

    ranks: int = option(8, "successors kept of a token", 1, 32)
    depth: int = option(6, "longest path", 1, 32)
    min_score: float = option(0.03, "path score below which a node is dropped", 0, 1)


@dataclass(frozen=True)
class DatastoreOptions(Options):
    name = "datastore"
    draws_on = frozenset({"datastore"})

    max_suffix: int = option(16, "longest suffix looked up", 1, 64)
    min_suffix: int = option(2, "shortest suffix used", 1, 64)
    matches: int = option(512, "continuations read", 1, 100_000)
    length: int = option(10, "tokens of a continuation", 1, 256)
    min_score: float = option(0.05, "path score below which a node is dropped", 0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_suffix > self.max_suffix:
            raise DrafterError(f"drafter datastore: min_suffix={self.min_suffix} exceeds max_suffix={self.max_suffix}")


@dataclass(frozen=True)
class GrowthOptions(Options):
    """Of every drafter that grows trees best first."""

    depth: int = option(8, "longest path", 1, 64)
    width: int = option(1, "nodes run in one draft forward", 1, 64)
    branching: int = option(3, "children considered of a node", 1, 64)
    min_score: float = option(0.05, "path score below which a node is dropped", 0, 1)
    forwards: int = option(16, "draft forwards of a round at most", 1, 64)
    stop: float = option(1.0, "stop when a rejection is likelier than this (SpecDec++)", 0, 1)


@dataclass(frozen=True)
class DraftModelOptions(GrowthOptions):
    name = "draft_model"
    draws_on = frozenset({"draft_model"})


@dataclass(frozen=True)
class AdaptiveOptions(DraftModelOptions):
    name = "adaptive"

    depth: int = option(20, "longest path", 1, 64)
    branching: int = option(1, "children considered of a node", 1, 64)
    forwards: int = option(20, "draft forwards of a round at most", 1, 64)
    stop: float = option(0.3, "stop when a rejection is likelier than this (SpecDec++)", 0, 1)


@dataclass(frozen=True)
class TrainedOptions(GrowthOptions):
    name = "trained"

    depth: int = option(6, "longest path", 1, 64)
    width: int = option(4, "nodes run in one forward of the head", 1, 64)
    forwards: int = option(6, "forwards of the head in a round at most", 1, 64)
    paced: bool = option(True, "guess less, or not at all, where that takes more time than it saves")
    online: float = option(
        0.0, "share of the engine's time to learn from answers in, once they are done; 0: none", 0, 0.2
    )
    typical: float = option(0.0, "Medusa's eps: above 0 a guess need only be typical of the target (lossy)", 0, 1)

    judge: float = option(0.0, "how likely right the judge must find a guess; 0: none is asked (lossy)", 0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.typical and self.judge:
            raise DrafterError("drafter trained: typical and judge are two rules of accepting guesses: give one")

    @property
    def lossy(self) -> bool:
        return self.typical > 0 or self.judge > 0


@dataclass(frozen=True)
class MultiRoundOptions(Options):
    name = "multi_round"
    keyed = False
    draws_on = frozenset({"draft_model"})

    rule: str = option("rsd", f"how children are judged: {', '.join(RULES)}", choices=RULES)
    depth: int = option(4, "longest path", 1, 64)
    branching: int = option(2, "draws at a row", 1, 64)


@dataclass(frozen=True)
class DraftPromptOptions(GrowthOptions):
    """Of every drafter whose model reads a shorter prompt."""

    depth: int = option(16, "longest path", 1, 64)
    context: int = option(
        0, "tokens of the shorter prompt at most; 0: as many passages as an answer by retrieval has, or a 16th", 0
    )
    threshold: float = option(0.0, "least cosine of a retrieved passage and the question; 0: any", 0, 1)
    chunk: int = option(256, "tokens of a chunk, where chunks of the prompt are taken", 16)
    question: int = option(64, "last tokens of the prompt that are the question there", 1)

    @property
    def reads(self) -> DraftPromptOptions | None:
        return self if "draft_prompt" in self.draws_on else None


@dataclass(frozen=True)
class RagOptions(DraftPromptOptions):
    name = "rag"

    model: str = option("self", f"who reads the chunks: {', '.join(READERS)}", choices=READERS)
    target_mix: float = option(0.0, "RAPID's eta; above 0 the output distribution changes (lossy)", 0, 1000)

    @property
    def lossy(self) -> bool:
        return self.target_mix > 0

    @property
    def draws_on(self) -> frozenset[str]:
        return frozenset({"draft_prompt"} if self.model == "self" else {"draft_prompt", "draft_model"})


@dataclass(frozen=True)
class CascadeOptions(DraftPromptOptions):
    name = "cascade"
    draws_on = _TEXTS | {"draft_prompt"}

    helper_budget: int = option(8, "nodes that the helper adds to a draft forward", 1, 64)


@dataclass(frozen=True)
class FusionOptions(DraftPromptOptions):
    name = "fusion"

    prune: int = option(10, "a retrieval branch starts with one of the draft model's best so many", 1, 64)
    model: str = option("auto", f"draft model: {', '.join(FUSED)}", choices=FUSED)
    always: bool = option(False, "ask the draft model in every round, whether it pays or not")

    @property
    def draws_on(self) -> frozenset[str]:
        models = {"none": set(), "trained": set(), "rag": {"draft_prompt"}, "draft_model": {"draft_model"}}
        return _TEXTS | models.get(self.model, {"draft_model", "draft_prompt"})


@dataclass(frozen=True)
class SelfSpeculationOptions(GrowthOptions):
    name = "self_speculation"

    skip: float = option(0.45, "share of the layers skipped at first", 0, 0.9)
    every: int = option(25, "rounds between searches of the layer set", 1)


@dataclass(frozen=True)
class GoodputOptions(Options):
    name = "goodput"

    inner: Options = option(SuffixOptions(), "the drafter whose trees are cut")  # noqa: RUF009 - it is frozen

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner.lossy or isinstance(self.inner, NoDrafterOptions | AutoOptions | GoodputOptions | OverlapOptions):
            raise DrafterError(f"drafter goodput: inner cannot be {self.inner}")

    @property
    def draws_on(self) -> frozenset[str]:
        return self.inner.draws_on

    @property
    def reads(self) -> DraftPromptOptions | None:
        return self.inner.reads


@dataclass(frozen=True)
class OverlapOptions(Options):
    name = "overlap"

    inner: Options = option(DraftModelOptions(), "that drafts on: draft_model, rag or cascade")  # noqa: RUF009

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner.lossy or not isinstance(self.inner, DraftModelOptions | RagOptions | CascadeOptions):
            raise DrafterError(f"drafter overlap: inner must be draft_model, rag or cascade, not {self.inner}")

    @property
    def draws_on(self) -> frozenset[str]:
        return self.inner.draws_on

    @property
    def reads(self) -> DraftPromptOptions | None:
        return self.inner.reads


DRAFTERS: dict[str, type[Options]] = {
    options.name: options
    for options in (
        NoDrafterOptions,
        AutoOptions,
        PromptLookupOptions,
        SuffixOptions,
        RecyclingOptions,
        DatastoreOptions,
        DraftModelOptions,
        AdaptiveOptions,
        TrainedOptions,
        MultiRoundOptions,
        RagOptions,
        CascadeOptions,
        FusionOptions,
        SelfSpeculationOptions,
        GoodputOptions,
        OverlapOptions,
    )
}
"""All that can be asked for, by name; here, so that a wrong name is told without torch. `registry` makes them."""
