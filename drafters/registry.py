"""Drafters by name: `NAME[:key=value,…]`, checked before any work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from drafters.base import Datastore, Drafter, DraftModel, SourceDrafter
from drafters.combine.auto import Auto
from drafters.combine.cascade import Cascade, Together
from drafters.combine.fusion import Fusion
from drafters.combine.goodput import Goodput
from drafters.combine.pacing import Pace
from drafters.combine.tracked import TrackedDrafter
from drafters.errors import DrafterError
from drafters.models.best_first import BestFirst, Growth, Stop, never
from drafters.models.draft_model import ModelDrafter
from drafters.models.rag import Rag
from drafters.models.reencoding import ReencodingDrafter
from drafters.options import (
    AdaptiveOptions,
    CascadeOptions,
    DatastoreOptions,
    FusionOptions,
    GoodputOptions,
    ModelOptions,
    MultiRoundOptions,
    Options,
    OverlapOptions,
    PromptLookupOptions,
    RagOptions,
    RecyclingOptions,
    SelfSpeculationOptions,
    SuffixOptions,
    describe_options,
    read_options,
)
from drafters.research.adaptive import rejection_likely
from drafters.research.multi_round import RULES, MultiRound
from drafters.research.overlap import Overlap
from drafters.research.self_speculation import SelfSpeculation
from drafters.research.target_mix import MixedRag
from drafters.resources import Resources
from drafters.sources.datastore import DatastoreDrafter
from drafters.sources.prompt_lookup import PromptLookup
from drafters.sources.recycling import Recycling
from drafters.sources.suffix import Suffix

DEFAULT = "auto"


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
    """`NAME[:key=value,…]` -> spec; DrafterError names what is unknown or out of bounds, and what is known."""
    name, _, rest = text.strip().partition(":")
    if name not in _DRAFTERS:
        raise DrafterError(f"unknown drafter {name!r}; there are {', '.join(names())}")
    return DrafterSpec(name, read_options(name, _DRAFTERS[name][0], rest))


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
    return {name: describe_options(options) for name, (options, _) in _DRAFTERS.items()}


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
