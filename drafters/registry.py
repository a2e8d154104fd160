"""Drafters by name: `NAME[:key=value,…]`, checked before any work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import Any, get_type_hints

import torch

from drafters.adaptive import rejection_likely
from drafters.auto import Auto
from drafters.base import Datastore, Drafter, DraftModel, RequestState, SourceDrafter
from drafters.best_first import BestFirst, Growth, Stop, never
from drafters.cascade import Cascade, Together
from drafters.datastore import DatastoreDrafter
from drafters.draft_model import ModelDrafter
from drafters.errors import DrafterError
from drafters.fusion import Fusion
from drafters.goodput import Goodput, MachineProfile, best_budget
from drafters.multi_round import RULES, MultiRound
from drafters.overlap import Overlap
from drafters.pacing import Pace
from drafters.prompt_lookup import PromptLookup
from drafters.rag import Rag
from drafters.recycling import Recycling
from drafters.reencoding import ReencodingDrafter
from drafters.resources import Resources
from drafters.sampling import choose
from drafters.self_speculation import SelfSpeculation
from drafters.successors import top_successors
from drafters.suffix import Suffix
from drafters.target_mix import MixedRag
from drafters.tracked import TrackedDrafter
from drafters.tree import DraftTree, fuse
from drafters.verify import walk

DEFAULT = "auto"


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


@dataclass(frozen=True)
class DrafterSpec:
    """A drafter's name and its checked options."""

    name: str
    options: Options

    @property
    def lossy(self) -> bool:
        """Whether the output distribution differs from the target's own."""
        return getattr(self.options, "target_mix", 0.0) > 0

    @property
    def keyed(self) -> bool:
        """Whether the tokens are those of plain decoding, rather than others of the same distribution."""
        return self.name != "multi_round"


Make = Callable[[Any, Resources], Drafter]


def parse(text: str) -> DrafterSpec:
    """`NAME[:key=value,…]` -> spec; DrafterError names what is unknown or out of bounds, and what is
    known."""
    name, _, rest = text.strip().partition(":")
    if name not in _DRAFTERS:
        raise DrafterError(f"unknown drafter {name!r}; there are {', '.join(names())}")
    options = _DRAFTERS[name][0]
    known = {entry.name: entry for entry in fields(options)}
    values: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals:
            raise DrafterError(f"drafter {name}: write options as key=value, not {item!r}")
        if key not in known:
            raise DrafterError(f"drafter {name} has no option {key!r}; it has {', '.join(known)}")
        if key in values:
            raise DrafterError(f"drafter {name}: option {key} is given twice")
        values[key] = _value(name, known[key], get_type_hints(options)[key], value.strip())
    return DrafterSpec(name, options(**values))


def build(spec: DrafterSpec | str, resources: Resources) -> TrackedDrafter:
    """A drafter for one request; DrafterError if the engine lacks what it needs."""
    if isinstance(spec, str):
        spec = parse(spec)
    inner = _make(spec, resources)
    return TrackedDrafter(inner, resources.calibration, resources.vocab_size, spec.options.budget)


def names() -> list[str]:
    """All drafters that `parse` knows."""
    return list(_DRAFTERS)


def describe() -> dict[str, dict[str, str]]:
    """For help texts: drafter -> option -> meaning and default."""
    return {
        name: {entry.name: f"{entry.metadata['help']} ({entry.default})" for entry in fields(options)}
        for name, (options, _) in _DRAFTERS.items()
    }


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


def _make(spec: DrafterSpec, resources: Resources) -> Drafter:
    return _DRAFTERS[spec.name][1](spec.options, resources)


def _growth(options: ModelOptions) -> Growth:
    return Growth(
        depth=options.depth,
        width=options.width,
        branching=options.branching,
        min_score=options.min_score,
        forwards=options.forwards,
    )


def _stop(options: ModelOptions) -> Stop:
    return rejection_likely(options.stop) if options.stop < 1 else never


def _pace(options: ModelOptions, resources: Resources) -> Pace:
    return Pace(resources.profile, options.depth)


def _needs(resource: Any, drafter: str, remedy: str) -> Any:
    if resource is None:
        raise DrafterError(f"drafter {drafter} needs {remedy}")
    return resource


def _prompt_lookup(options: PromptLookupOptions, resources: Resources) -> PromptLookup:
    return PromptLookup(resources.calibration, ngram=options.ngram, length=options.length)


def _suffix(options: SuffixOptions, resources: Resources) -> Suffix:
    return Suffix(
        resources.calibration,
        resources.automata,
        factor=options.factor,
        min_match=options.min_match,
        min_score=options.min_score,
        branching=options.branching,
    )


def _recycling(options: RecyclingOptions, resources: Resources) -> Recycling:
    return Recycling(
        resources.calibration,
        resources.successors(options.ranks),
        depth=options.depth,
        min_score=options.min_score,
    )


def _datastore(options: DatastoreOptions, resources: Resources) -> DatastoreDrafter:
    store = _needs(resources.datastore, "datastore", "a library with a token store in the target's tokens")
    if not _same_tokenizer(store, resources):
        raise DrafterError(
            f"the datastore was built with the tokenizer {store.tokenizer}, the model has {resources.tokenizer}: "
            "build the index again for this model"
        )
    return DatastoreDrafter(
        resources.calibration,
        store,
        max_suffix=options.max_suffix,
        min_suffix=options.min_suffix,
        matches=options.matches,
        length=options.length,
        min_score=options.min_score,
    )


def _same_tokenizer(store: Datastore, resources: Resources) -> bool:
    return resources.tokenizer is None or store.tokenizer == resources.tokenizer


def _free(resources: Resources) -> Together:
    """Every source that costs no forward."""
    sources: list[SourceDrafter] = [
        _suffix(SuffixOptions(), resources),
        _recycling(RecyclingOptions(), resources),
    ]
    if resources.datastore is not None and _same_tokenizer(resources.datastore, resources):
        sources.append(_datastore(DatastoreOptions(), resources))
    return Together(sources)


def _draft_model(options: ModelOptions, resources: Resources) -> Drafter:
    model: DraftModel = _needs(resources.draft_model, "draft_model", "a draft model (set draft_model)")
    if resources.draft_codec is not None:
        codec = _needs(resources.codec, "draft_model", "the target's tokenizer, to re-encode")
        return ReencodingDrafter(model, resources.calibration, codec, resources.draft_codec, length=options.depth)
    if model.vocab_size != resources.vocab_size:
        raise DrafterError(
            f"the draft model has {model.vocab_size} token ids, the target {resources.vocab_size}: use a draft "
            "model of the same vocabulary, or give both tokenizers to re-encode between them"
        )
    return _same_vocabulary(options, resources)


def _same_vocabulary(options: ModelOptions, resources: Resources, paced: bool = True) -> ModelDrafter:
    builder = BestFirst("draft_model", resources.calibration, _growth(options), _stop(options))
    return ModelDrafter(resources.draft_model, builder, _pace(options, resources) if paced else None)


def _multi_round(options: MultiRoundOptions, resources: Resources) -> MultiRound:
    if options.rule not in RULES:
        raise DrafterError(f"drafter multi_round: rule must be one of {', '.join(RULES)}, not {options.rule!r}")
    model: DraftModel = _needs(resources.draft_model, "multi_round", "a draft model (set draft_model)")
    if model.vocab_size != resources.vocab_size:
        raise DrafterError(
            f"drafter multi_round: the draft model has {model.vocab_size} token ids, the target "
            f"{resources.vocab_size}; its distribution cannot be re-encoded, use draft_model"
        )
    builder = BestFirst("multi_round", resources.calibration, Growth())
    return MultiRound(model, builder, rule=options.rule, depth=options.depth, branching=options.branching)


def _self_model(resources: Resources, drafter: str) -> DraftModel:
    return _needs(resources.self_model, drafter, "an engine that lends its model for a second sequence")


def _rag(options: RagOptions, resources: Resources, paced: bool = True) -> Rag:
    model = _self_model(resources, "rag")
    builder = BestFirst("rag", resources.calibration, _growth(options), _stop(options))
    pace = _pace(options, resources) if paced else None
    prompt = {"chunk": options.chunk, "context": options.context, "question": options.question}
    if options.target_mix > 0:
        return MixedRag(model, builder, eta=options.target_mix, length=options.depth, **prompt)
    return Rag(model, builder, pace, **prompt)


def _cascade(options: CascadeOptions, resources: Resources) -> Cascade:
    if options.target_mix > 0:
        raise DrafterError("drafter cascade is lossless only; use rag for target_mix")
    helper = _free(resources)
    builder = BestFirst(
        "cascade", resources.calibration, _growth(options), _stop(options), helper, options.helper_budget
    )
    return Cascade(
        helper,
        _self_model(resources, "cascade"),
        builder,
        _pace(options, resources),
        chunk=options.chunk,
        context=options.context,
        question=options.question,
    )


def _fusion(options: FusionOptions, resources: Resources) -> Fusion:
    if options.target_mix > 0:
        raise DrafterError("drafter fusion is lossless only; use rag for target_mix")
    if options.model not in ("auto", "none", "rag", "draft_model"):
        raise DrafterError(f"drafter fusion: model must be auto, none, rag or draft_model, not {options.model!r}")
    model: ModelDrafter | None = None
    same = resources.draft_model is not None and resources.draft_model.vocab_size == resources.vocab_size
    if options.model == "draft_model" or (options.model == "auto" and same):
        _needs(resources.draft_model if same else None, "fusion", "a draft model of the target's vocabulary")
        model = _same_vocabulary(options, resources, paced=False)
    elif options.model == "rag" or (options.model == "auto" and resources.self_model is not None):
        model = _rag(options, resources, paced=False)  # fusion asks where it pays
    return Fusion(_free(resources), model, resources.profile, prune=options.prune, always=options.always)


def _self_speculation(options: SelfSpeculationOptions, resources: Resources) -> SelfSpeculation:
    model = _needs(resources.skippable, "self_speculation", "an engine that can skip layers")
    builder = BestFirst("self_speculation", resources.calibration, _growth(options), _stop(options))
    search = resources.layer_search(model.num_layers, options.skip, options.every)
    return SelfSpeculation(model, builder, search)


def _goodput(options: GoodputOptions, resources: Resources) -> Goodput:
    if options.inner in ("goodput", "auto", "none", "overlap"):
        raise DrafterError(f"drafter goodput: inner cannot be {options.inner}")
    return Goodput(_make(parse(options.inner), resources), resources.profile)


def _overlap(options: OverlapOptions, resources: Resources) -> Overlap:
    inner = _make(parse(options.inner), resources)
    if not isinstance(inner, ModelDrafter) or isinstance(inner, (MixedRag, SelfSpeculation)):
        raise DrafterError(f"drafter overlap: inner must be draft_model, rag or cascade, not {options.inner}")
    return Overlap(inner)


def _auto(options: Options, resources: Resources) -> Auto:
    return Auto(_free(resources), resources.profile, resources.habits)


def _none(options: Options, resources: Resources) -> Together:
    return Together([])


_DRAFTERS: dict[str, tuple[type[Options], Make]] = {
    "none": (Options, _none),
    "auto": (Options, _auto),
    "prompt_lookup": (PromptLookupOptions, _prompt_lookup),
    "suffix": (SuffixOptions, _suffix),
    "recycling": (RecyclingOptions, _recycling),
    "datastore": (DatastoreOptions, _datastore),
    "draft_model": (ModelOptions, _draft_model),
    "adaptive": (AdaptiveOptions, _draft_model),
    "multi_round": (MultiRoundOptions, _multi_round),
    "rag": (RagOptions, _rag),
    "cascade": (CascadeOptions, _cascade),
    "fusion": (FusionOptions, _fusion),
    "self_speculation": (SelfSpeculationOptions, _self_speculation),
    "goodput": (GoodputOptions, _goodput),
    "overlap": (OverlapOptions, _overlap),
}


def warm_up() -> None:
    """Compile what the free drafters compile, so that the first request does not wait for it (seconds after an
    installation, half a second later on, when the compiled code is found on disk)."""
    trees = []
    for name in ("prompt_lookup", "suffix", "recycling"):
        drafter = build(name, Resources(vocab_size=4))
        state = RequestState("warm-up", [1, 2, 3, 1, 2], 5, documents=[[1, 2, 3]])
        drafter.start(state)
        tree = drafter.propose(state, 4)
        logits = torch.zeros(len(tree) + 1, 4)
        verdict = walk(logits, tree, 1.0, 0, len(state.tokens))
        top = top_successors(logits, verdict.rows, drafter.needs_topk) if drafter.needs_topk else None
        drafter.observe(state, tree, verdict, top)
        trees.append(tree)
    tree = fuse(trees).trim(1).ended_by(frozenset([3]))
    tree.depths, tree.ancestor_mask  # noqa: B018 - both are computed when first read
    DraftTree.chain([1, 2]).ended_by(frozenset([1]))
    profile = MachineProfile()
    profile.record([1], [1], 1.0)
    best_budget(tree.scores, profile.step_times(1, 1, len(tree)))
    choose(torch.zeros(1, 4), 1.0, 0, 1.0, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
