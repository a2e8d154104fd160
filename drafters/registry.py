"""Drafters by name, and how each is made of its options and of what the engine has.

`register` makes another one known, from whatever file (examples/own_drafter.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from drafters.base import Drafter, SourceDrafter
from drafters.combine.auto import Auto
from drafters.combine.cascade import Cascade
from drafters.combine.fusion import Fusion
from drafters.combine.goodput import Goodput
from drafters.combine.together import Together
from drafters.errors import DrafterError
from drafters.heads.head import Head
from drafters.models.best_first import BestFirst
from drafters.models.draft_model import ModelDrafter
from drafters.models.judge import Judged
from drafters.models.pacing import Pace
from drafters.models.rag import Rag, draft_prompt
from drafters.models.reencoding import ReencodingDrafter
from drafters.models.riding import Riders
from drafters.models.trained import Trained
from drafters.models.typical import Typical
from drafters.options import (
    DRAFTERS,
    AdaptiveOptions,
    AutoOptions,
    CascadeOptions,
    DatastoreOptions,
    DraftModelOptions,
    FusionOptions,
    GoodputOptions,
    GrowthOptions,
    MultiRoundOptions,
    NoDrafterOptions,
    Options,
    OverlapOptions,
    PromptLookupOptions,
    RagOptions,
    RecyclingOptions,
    SelfSpeculationOptions,
    SuffixOptions,
    TrainedOptions,
)
from drafters.protocols import Datastore, DraftModel, TextCodec
from drafters.research.multi_round import MultiRound
from drafters.research.overlap import Overlap
from drafters.research.self_speculation import SelfSpeculation
from drafters.research.target_mix import MixedRag
from drafters.resources import Resources
from drafters.sources.datastore import DatastoreDrafter
from drafters.sources.prompt_lookup import PromptLookup
from drafters.sources.recycling import Recycling
from drafters.sources.suffix import Suffix
from drafters.tracked import TrackedDrafter
from drafters.training.online import OnlineHead

Make = Callable[[Any, Resources], Drafter]

_MAKERS: dict[str, Make] = {}


def register(options: type[Options], make: Make) -> None:
    """Make a drafter known by its options' name. `make` builds it for one request, of its options and the resources.

    Raises:
        DrafterError: there is a drafter of that name.
    """
    if options.name in _MAKERS:
        raise DrafterError(f"there is a drafter {options.name!r} already: give its options another name")
    DRAFTERS[options.name] = options
    _MAKERS[options.name] = make


def build(options: Options, resources: Resources) -> TrackedDrafter:
    """A drafter for one request; DrafterError if the engine lacks what it needs."""
    inner = _make(options, resources)
    return TrackedDrafter(inner, resources.learned.calibration, resources.vocab_size, options.budget)


def describe() -> dict[str, dict[str, str]]:
    """For help texts: drafter -> option -> meaning and default."""
    return {name: options.describe() for name, options in DRAFTERS.items()}


def _make(options: Options, resources: Resources) -> Drafter:
    return _MAKERS[options.name](options, resources)


def _needs(resource: Any, drafter: str, remedy: str) -> Any:
    if resource is None:
        raise DrafterError(f"drafter {drafter} needs {remedy}")
    return resource


def _none(options: Options, resources: Resources) -> Together:
    return Together([])


def _auto(options: AutoOptions, resources: Resources) -> Auto:
    retrieval, fused = _free(resources), None
    if resources.head is not None:
        fused = Fusion(retrieval, _trained(TrainedOptions(), resources), resources.profile, FusionOptions())
    return Auto(retrieval, resources.profile, resources.learned.acceptance, fused)


def _free(resources: Resources) -> Together:
    """Every source that costs no forward."""
    sources: list[SourceDrafter] = [
        _suffix(SuffixOptions(), resources),
        _recycling(RecyclingOptions(), resources),
    ]
    if resources.datastore is not None and _same_tokenizer(resources.datastore, resources):
        sources.append(_datastore(DatastoreOptions(), resources))
    return Together(sources)


def _prompt_lookup(options: PromptLookupOptions, resources: Resources) -> PromptLookup:
    return PromptLookup(resources.learned.calibration, options)


def _suffix(options: SuffixOptions, resources: Resources) -> Suffix:
    return Suffix(resources.learned.calibration, resources.learned.automata, options)


def _recycling(options: RecyclingOptions, resources: Resources) -> Recycling:
    return Recycling(
        resources.learned.calibration, resources.learned.successors(resources.vocab_size, options.ranks), options
    )


def _datastore(options: DatastoreOptions, resources: Resources) -> DatastoreDrafter:
    store = _needs(resources.datastore, "datastore", "a library with a token store in the target's tokens")
    if not _same_tokenizer(store, resources):
        raise DrafterError(
            f"the datastore was built with the tokenizer {store.tokenizer}, the model has {resources.tokenizer()}: "
            "build the index again for this model"
        )
    return DatastoreDrafter(resources.learned.calibration, store, options)


def _same_tokenizer(store: Datastore, resources: Resources) -> bool:
    return resources.tokenizer() in (None, store.tokenizer)


def _draft_model(options: DraftModelOptions, resources: Resources) -> Drafter:
    model: DraftModel = _needs(resources.draft_model, options.name, "a draft model (set draft_model)")
    if resources.draft_codec is not None:
        codec = _needs(resources.codec, options.name, "the target's tokenizer, to re-encode")
        return ReencodingDrafter(
            model, resources.learned.calibration, codec, resources.draft_codec, length=options.depth
        )
    _same_size(model, options.name, resources)
    return ModelDrafter(model, _growth("draft_model", options, resources), _pace(options, resources))


def _same_size(model: DraftModel, drafter: str, resources: Resources) -> None:
    """Refuse a draft model of another number of token ids."""
    if model.vocab_size != resources.vocab_size:
        raise DrafterError(
            f"drafter {drafter}: the draft model has {model.vocab_size} token ids, the target {resources.vocab_size}: "
            "use a draft model of the same vocabulary, or give both tokenizers to re-encode between them"
        )


def _trained(options: TrainedOptions, resources: Resources, paced: bool = False, ranks: int = 10) -> Trained:
    head = _needs(resources.head, "trained", "a trained drafter of this model (set draft_model to its folder)")
    online = _online(head, resources) if options.online else None
    head = online.head if online is not None else head
    if not head.costly:  # its guesses are there already
        options = replace(options, width=options.budget)
    growth = _growth(head.name, options, resources, ranks=ranks)
    if head.exit:
        _needs(resources.skippable, head.name, "an engine that can skip layers")
    pace = _pace(options, resources) if paced else None
    trained = _verified(options, resources)(head, growth, options.depth, pace, resources.skippable)
    if head.prompts is not None:
        trained.ride(Riders(head, resources.profile))
    if online is not None:
        trained.learn(online, resources.learning, options.online)
    return trained


def _verified(options: TrainedOptions, resources: Resources) -> Callable[..., Trained]:
    """The trained drafter with the rule of accepting guesses that is asked for."""
    if options.typical:
        return partial(Typical, epsilon=options.typical)
    if options.judge:
        judge = _needs(resources.judge, "trained", "a judge beside the trained drafter (folio train judge)")
        return partial(Judged, judge=judge, least=options.judge)
    return Trained


def _online(head: Head, resources: Resources) -> OnlineHead:
    if head.d2t.device.type != "cpu":
        raise DrafterError("drafter trained: online learns on a CPU, and this model is not on one: leave it out")
    if head.prompts is not None:
        raise DrafterError(f"drafter trained: {head.name} learns through the whole target and not online: leave it out")
    return resources.learned.online(head, resources.packing)


def _trained_alone(options: TrainedOptions, resources: Resources) -> Trained:
    return _trained(options, resources, paced=options.paced and not options.lossy)  # else the text would tell the pace


def _multi_round(options: MultiRoundOptions, resources: Resources) -> MultiRound:
    model: DraftModel = _needs(resources.draft_model, "multi_round", "a draft model (set draft_model)")
    if model.vocab_size != resources.vocab_size:
        raise DrafterError(
            f"drafter multi_round: the draft model has {model.vocab_size} token ids, the target "
            f"{resources.vocab_size}; its distribution cannot be re-encoded, use draft_model"
        )
    return MultiRound(model, _growth("multi_round", DraftModelOptions(), resources), options)


def _rag(options: RagOptions, resources: Resources) -> Drafter:
    if options.model == "self":
        model = _self_model(options, resources)
    else:
        model = _needs(resources.draft_model, "rag", "a draft model for model=draft_model (set draft_model)")
        if resources.draft_codec is not None:
            return _reencoding_rag(options, model, resources.draft_codec, resources)
        _same_size(model, "rag", resources)
    builder = _growth("rag", options, resources)
    if options.lossy:
        return MixedRag(model, builder, options)
    return Rag(model, builder, options, _pace(options, resources))


def _reencoding_rag(
    options: RagOptions, model: DraftModel, draft_codec: TextCodec, resources: Resources
) -> ReencodingDrafter:
    if options.lossy:
        raise DrafterError(
            "drafter rag: target_mix mixes two distributions of the same tokens, and the draft model has others: "
            "leave it out, or give a draft model of the target's vocabulary"
        )
    return ReencodingDrafter(
        model,
        resources.learned.calibration,
        _needs(resources.codec, "rag", "the target's tokenizer, to re-encode"),
        draft_codec,
        length=options.depth,
        name="rag",
        prompt=lambda state: draft_prompt(state, options),
    )


def _cascade(options: CascadeOptions, resources: Resources) -> Cascade:
    helper = _free(resources)
    builder = _growth("cascade", options, resources, helper=helper, helper_budget=options.helper_budget)
    return Cascade(helper, _self_model(options, resources), builder, options, _pace(options, resources))


def _fusion(options: FusionOptions, resources: Resources) -> Fusion:
    return Fusion(_free(resources), _fused_model(options, resources), resources.profile, options)


def _fused_model(options: FusionOptions, resources: Resources) -> ModelDrafter | Trained | None:
    """The draft model that is asked for, or that the engine has; it has no pace of its own, fusion asks it where it
    pays."""
    if options.model == "trained" or (options.model == "auto" and resources.head is not None):
        return _trained(TrainedOptions(), resources, ranks=options.prune)
    own = resources.draft_model
    same = own is not None and own.vocab_size == resources.vocab_size
    if options.model == "draft_model" or (options.model == "auto" and same):
        model: DraftModel = _needs(own if same else None, "fusion", "a draft model of the target's vocabulary")
        return ModelDrafter(model, _growth("draft_model", options, resources, ranks=options.prune))
    if options.model == "rag" or (options.model == "auto" and resources.self_model is not None):
        return Rag(_self_model(options, resources), _growth("rag", options, resources, ranks=options.prune), options)
    return None


def _self_model(options: Options, resources: Resources) -> DraftModel:
    return _needs(resources.self_model, options.name, "an engine that lends its model for a second sequence")


def _growth(source: str, options: GrowthOptions, resources: Resources, **more: Any) -> BestFirst:
    return BestFirst(source, resources.learned.calibration, options, **more)


def _pace(options: GrowthOptions, resources: Resources) -> Pace:
    return Pace(resources.profile, options.depth)


def _self_speculation(options: SelfSpeculationOptions, resources: Resources) -> SelfSpeculation:
    model = _needs(resources.skippable, "self_speculation", "an engine that can skip layers")
    search = resources.learned.layer_search(model.num_layers, options.skip, options.every)
    return SelfSpeculation(model, _growth("self_speculation", options, resources), search)


def _goodput(options: GoodputOptions, resources: Resources) -> Goodput:
    return Goodput(_make(options.inner, resources), resources.profile)


def _overlap(options: OverlapOptions, resources: Resources) -> Overlap:
    inner = _make(options.inner, resources)
    if not isinstance(inner, ModelDrafter):
        raise DrafterError("drafter overlap needs a draft model of the target's vocabulary")
    return Overlap(inner)


register(NoDrafterOptions, _none)
register(AutoOptions, _auto)
register(PromptLookupOptions, _prompt_lookup)
register(SuffixOptions, _suffix)
register(RecyclingOptions, _recycling)
register(DatastoreOptions, _datastore)
register(DraftModelOptions, _draft_model)
register(AdaptiveOptions, _draft_model)
register(TrainedOptions, _trained_alone)
register(MultiRoundOptions, _multi_round)
register(RagOptions, _rag)
register(CascadeOptions, _cascade)
register(FusionOptions, _fusion)
register(SelfSpeculationOptions, _self_speculation)
register(GoodputOptions, _goodput)
register(OverlapOptions, _overlap)
