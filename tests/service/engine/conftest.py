"""Tiny random checkpoints of the supported families, and engines over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from service.engine.async_engine import AsyncEngine
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.kv.layout import kv_dtype
from service.engine.loading.checkpoint import prepare
from service.engine.outputs import Generation
from service.engine.params import SamplingParams
from sparse_attn.kv.pool import bytes_per_page

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

FAMILIES: dict[str, type[PretrainedConfig]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "mistral": MistralConfig,
    "phi3": Phi3Config,
    "gemma2": Gemma2Config,
    "gemma3": Gemma3TextConfig,
    "smollm3": SmolLM3Config,
}

EXTRA: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 20},
    "phi3": {"hidden_size": 64},
    "gemma2": {"sliding_window": 20, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 16},
    "gemma3": {"sliding_window": 20},
}


def make_model(family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A random model of a family; weights large enough for attention to be far from flat."""
    torch.manual_seed(seed)
    config = FAMILIES[family](**{**SIZES, **EXTRA.get(family, {}), **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return model


def make_engine(family: str = "llama", seed: int = 0, pages: int = 64, **options: Any) -> Engine:
    """An engine over ``make_model`` with a pool of so many pages of all heads."""
    model = make_model(family, seed)
    config = EngineConfig(**{"dtype": "float64", "page_size": 16, "step_tokens": 64, "max_running": 12, **options})
    loaded = prepare(family, model)
    memory = pages * bytes_per_page(loaded.kv_shape, config.page_size, kv_dtype(config))
    return Engine(loaded, EngineConfig(**{**vars(config), "kv_memory": memory}))


def generate(
    engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams] | None = None
) -> list[Generation]:
    """Prompts through the door of an engine, to their ends."""
    with AsyncEngine(engine) as door:
        return door.generate(prompts, params)


@pytest.fixture
def engine() -> Engine:
    return make_engine()
