"""What an engine lends its drafters: itself for a second sequence, itself with layers skipped, a draft model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from drafters.errors import DrafterError
from drafters.heads.folder import is_head, load_head
from drafters.heads.head import Head
from drafters.models.judge import Judge, load_judge
from drafters.resources import Resources
from drafters.training.online import Packing
from service.engine.block_manager import BlockManager
from service.engine.config import EngineConfig
from service.engine.drafting.sessions import DraftPages, PagedDraftModel, SeparateDraftModel, SkippingModel
from service.engine.drafting.target import TargetView
from service.engine.loading.checkpoint import DTYPES, LoadedModel, load_model
from service.engine.request import Request
from service.engine.runner.model_runner import ModelRunner
from service.engine.runner.packed_layers import pack_model
from service.engine.runner.prompt_tokens import lend_prompts
from service.engine.scheduler import Scheduler
from service.errors import ModelError
from sparse_attn.kv.pool import KVPool


def draft_resources(
    loaded: LoadedModel,
    config: EngineConfig,
    runner: ModelRunner,
    lent: DraftPages,
    scheduler: Scheduler,
    requests: dict[str, Request],
    salt: str,
) -> Resources:
    """The resources of one engine; a draft model is loaded here, with pages and a scheduler of its own, or a trained
    drafter.

    Raises:
        ModelError: the draft model cannot be loaded.
    """
    resources = Resources(
        vocab_size=loaded.vocab_size,
        tokenizer=lambda: loaded.tokenizer_fingerprint,
        codec=_codec(loaded.tokenizer),
        self_model=PagedDraftModel(runner, lent, scheduler, loaded.vocab_size, salt),
        # Other ranks would have to skip the same layers.
        skippable=SkippingModel(runner, requests, loaded.vocab_size) if loaded.ranks is None else None,
    )
    if config.draft_model is not None and is_head(config.draft_model):
        resources.head, resources.judge, resources.packing = _trained(config.draft_model, loaded)
        if resources.head.prompts is not None:
            lend_prompts(loaded.model, loaded.vocab_size, resources.head.prompts)
    elif config.draft_model is not None:
        draft = load_model(config.draft_model, config.dtype, config.device, weights=loaded.weights)
        num_pages = lent.blocks.num_pages
        pool = KVPool(draft.kv_shape, num_pages, config.page_size, DTYPES[config.dtype], config.device)
        own = DraftPages(BlockManager(num_pages, config.page_size, config.prefix_cache))
        resources.draft_model = SeparateDraftModel(
            ModelRunner(draft.model, pool),
            own,
            Scheduler(scheduler.config, own.blocks),
            draft.vocab_size,
            draft.fingerprint,
        )
        if not _same_vocabulary(loaded.tokenizer, draft.tokenizer):
            resources.draft_codec = _codec(draft.tokenizer)
    return resources


def _trained(folder: str, loaded: LoadedModel) -> tuple[Head, Judge | None, Packing | None]:
    """The trained drafter of a folder, its weights kept in 16 bits where the model's are kept packed, the judge beside
    it, if there is one, and how they were packed.

    Raises:
        ModelError: it is damaged, of a format that Folio does not know, or was made for another model.
    """
    plain = partial(_plain, folder, loaded)
    try:
        head, judge = plain(), load_judge(folder, TargetView(loaded))
    except DrafterError as error:
        raise ModelError(f"{str(error)[0].upper()}{str(error)[1:]}.", param="draft_model") from error
    if loaded.precision is None or loaded.weights == "plain":
        return head, judge, None
    products = loaded.precision.products
    pack_model(head, "BF16", products)

    def pack(version: Head) -> Head:
        packed = version.copied()
        packed.lm_head = head.lm_head
        pack_model(packed, "BF16", products)
        return packed

    return head, judge, Packing(plain, pack)


def _plain(folder: str, loaded: LoadedModel) -> Head:
    return load_head(folder, TargetView(loaded)).to(loaded.device)


class _Codec:
    """A tokenizer as re-encoding between vocabularies needs it (``drafters.protocols.TextCodec``)."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)


def _codec(tokenizer: Any) -> _Codec | None:
    return _Codec(tokenizer) if tokenizer is not None else None


def _same_vocabulary(one: Any, other: Any) -> bool:
    """Do two tokenizers give the same ids? Without tokenizers the sizes alone can tell, which the drafter checks."""
    if one is None or other is None:
        return True
    return one.get_vocab() == other.get_vocab()
