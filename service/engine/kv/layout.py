"""How the engine's pool keeps KV: in which dtype, which heads share a page, and how long a context it holds."""

from __future__ import annotations

import torch

from service.engine.config import EngineConfig
from service.engine.loading.checkpoint import DTYPES, LoadedModel
from service.engine.loading.device import available_memory
from service.engine.options import check_policy, parse_policy
from service.errors import InvalidRequest, ModelError
from sparse_attn.kv.head_layout import HeadLayout
from sparse_attn.kv.pool import KVPool, bytes_per_page
from sparse_attn.plan.policy import ModelShape, Policy

KV_MEMORY = 2 << 30  # where nothing is said, on a CPU
GPU_SHARE = 0.85  # of a GPU's free memory: activations and graphs take the rest


def kv_dtype(config: EngineConfig) -> torch.dtype:
    """Of the pages: the model's own, another floating one, or int8 with a scale a token and head.

    Raises:
        InvalidRequest: another floating one on a GPU, whose kernels multiply numbers of one dtype.
    """
    if config.kv_dtype == "int8":
        return torch.int8
    if config.kv_dtype not in ("auto", config.dtype) and config.device != "cpu":
        raise InvalidRequest(
            f"KV in {config.kv_dtype} beside a model in {config.dtype} is for a CPU.",
            hint="Give --kv-dtype auto or int8, or the model another --dtype.",
            param="kv_dtype",
        )
    return DTYPES[config.dtype if config.kv_dtype == "auto" else config.kv_dtype]


def checked_policy(name: str, shape: ModelShape, param: str = "attention") -> Policy:
    """An attention policy that the model and its pages allow.

    Raises:
        InvalidRequest: there is none of that name, or they do not.
    """
    policy = parse_policy(name, param)
    check_policy(policy, shape, param)
    return policy


def head_layout(config: EngineConfig, shape: ModelShape) -> HeadLayout:
    """Which KV heads share a page: the streaming heads of ``kv_groups`` get pages of their own, which can be freed.

    Raises:
        InvalidRequest: ``kv_groups`` names a policy that the model does not allow.
    """
    whole = HeadLayout.whole(shape.num_layers, shape.num_kv_heads)
    if config.kv_groups == "none":
        return whole
    named = config.kv_groups != "auto"
    policy = checked_policy(
        config.kv_groups if named else config.attention, shape, "kv_groups" if named else "attention"
    )
    heads = policy.head_groups(shape)
    if heads is None:
        if named:
            raise InvalidRequest(
                f"The policy {config.kv_groups!r} has no streaming heads, so there is nothing to keep apart.",
                hint="Give lserve with a head file, auto or none.",
                param="kv_groups",
            )
        return whole
    return HeadLayout.split(heads.streaming, shape.num_kv_heads)


def kv_memory(config: EngineConfig, shared: bool = False) -> int:
    """Bytes for the pages of KV: as told, else a share of what a GPU has left once the weights are there.

    Ranks that share a model must have equally many pages, so there, as on a CPU, it is a fixed amount.
    """
    if config.kv_memory is not None:
        return config.kv_memory
    if config.device == "cpu" or shared:
        return KV_MEMORY
    return int((available_memory(config.device) or 0) * GPU_SHARE)


def make_pool(loaded: LoadedModel, config: EngineConfig, layout: HeadLayout | None = None) -> KVPool:
    """The pages that ``kv_memory`` holds, of all heads together or in the groups of ``layout``.

    Raises:
        ModelError: it does not hold one, or the device does not have it.
    """
    dtype, memory = kv_dtype(config), kv_memory(config, loaded.ranks is not None)
    per_page = bytes_per_page(loaded.kv_shape, config.page_size, dtype, layout)
    num_pages = memory // per_page
    if num_pages < 1:
        raise ModelError(
            f"{memory} bytes for KV (FOLIO_KV_MEMORY) do not hold one page of {per_page} bytes.",
            hint="Raise it" + ("." if config.kv_memory is not None else ", or take a smaller model."),
            param="kv_memory",
        )
    try:
        return KVPool(
            loaded.kv_shape, num_pages, config.page_size, dtype, config.device, layout, products=DTYPES[config.dtype]
        )
    except MemoryError as error:
        raise ModelError(f"There is too little memory: {error}.", param="kv_memory") from error
