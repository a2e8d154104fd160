"""Keys that are moved are those that the model would have computed at the other place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PhiConfig,
    PretrainedConfig,
    SmolLM3Config,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from sparse_attn.backend import attach
from sparse_attn.errors import UnsupportedModelFeature
from sparse_attn.kv.pool import KVPool, KVShape
from sparse_attn.kv.rotation import Rotation

SIZES = {
    "vocab_size": 31,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.int8: 0.06}
"""of a key, in units of its largest channel"""

MODELS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES, num_hidden_layers=2),
    "linear": LlamaConfig(
        **SIZES, num_hidden_layers=2, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    ),
    "yarn": LlamaConfig(
        **SIZES, num_hidden_layers=2, rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
    ),
    "partial": PhiConfig(**SIZES, num_hidden_layers=2, partial_rotary_factor=0.5),
    "interleaved": CohereConfig(**SIZES, num_hidden_layers=2),
    "some layers without": SmolLM3Config(**SIZES, num_hidden_layers=4),
    "two bases": Gemma3TextConfig(**SIZES, num_hidden_layers=6, head_dim=8, sliding_window=20),
}


def model_of(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> tuple[Any, KVShape]:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    return model, attach(model)


def rotary(head_dim: int, base: float, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """keys [T, H, D] at these positions, by the model's own code."""
    config = LlamaConfig(head_dim=head_dim, rope_parameters={"rope_type": "default", "rope_theta": base})
    cos, sin = LlamaRotaryEmbedding(config)(keys, positions[None])
    return apply_rotary_pos_emb(keys.transpose(0, 1)[None], keys.transpose(0, 1)[None], cos, sin)[1][0].transpose(0, 1)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@settings(max_examples=25, deadline=None)
@given(
    start=st.integers(0, 3000),
    target=st.integers(0, 3000),
    base=st.sampled_from([1e4, 1e6]),
    seed=st.integers(0, 99),
)
def test_moved_keys_are_those_computed_in_place(
    dtype: torch.dtype, start: int, target: int, base: float, seed: int
) -> None:
    count, heads, dim = 9, 2, 16
    plain = torch.randn(count, heads, dim, generator=torch.Generator().manual_seed(seed))
    products = torch.float32 if dtype == torch.int8 else dtype
    there, here = (rotary(dim, base, plain, torch.arange(at, at + count)) for at in (start, target))
    pool = KVPool(KVShape(1, heads, dim), 4, 16, dtype, products=products)
    slots = [torch.randperm(64, generator=torch.Generator().manual_seed(seed))[:count]]
    pool.put_tokens(slots, there[None].to(products), there[None].to(products))
    frequencies = base ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    rotation = Rotation(frequencies[None], slice(0, dim // 2), slice(dim // 2, dim))
    k, v = pool.get_tokens(slots)
    pool.put_tokens(slots, rotation.turn(k, target - start), v)
    moved, kept = pool.get_tokens(slots)
    scale = plain.abs().max()
    angles = 3e-7 * max(start, target) * plain.norm()  # the model's own, in float32
    assert (moved[0].float() - here).abs().max() <= TOLERANCE[dtype] * scale + angles
    assert torch.equal(kept, v)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rotation_of_a_model_is_found(name: str, dtype: torch.dtype) -> None:
    model, shape = model_of(MODELS[name], dtype)
    rotation = Rotation.of_model(model, shape)
    assert rotation.frequencies.shape[0] == shape.num_layers
    turns = rotation.frequencies.abs().amax(1) > 0
    assert turns.tolist() == [True, True, True, False] if name == "some layers without" else bool(turns.all())


def test_layers_of_two_bases_have_frequencies_of_their_own() -> None:
    model, shape = model_of(MODELS["two bases"])
    frequencies = Rotation.of_model(model, shape).frequencies
    assert torch.equal(frequencies[0], frequencies[1])
    assert not torch.allclose(frequencies[0], frequencies[5])


def test_learned_positions_are_refused_by_name() -> None:
    model, shape = model_of(GPT2Config(vocab_size=31, n_embd=32, n_layer=2, n_head=4, n_positions=512))
    with pytest.raises(UnsupportedModelFeature, match=r"GPT2LMHeadModel.*learned positions"):
        Rotation.of_model(model, shape)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_scaling_by_length_is_refused_by_name(kind: str) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4} if kind == "longrope" else {}
    rope = {"rope_type": kind, "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 64, **factors}
    model, shape = model_of(LlamaConfig(**SIZES, num_hidden_layers=2, rope_parameters=rope))
    with pytest.raises(UnsupportedModelFeature, match=f"LlamaForCausalLM has {kind} scaling"):
        Rotation.of_model(model, shape)


def test_tokens_of_split_heads_come_back_as_they_were_put() -> None:
    from sparse_attn.kv.head_layout import HeadLayout

    layout = HeadLayout.split([(1,), (0, 2)], 3)
    pool = KVPool(KVShape(2, 3, 8), 6, 4, layout=layout)
    slots = [torch.tensor([0, 5, 9]), torch.tensor([13, 2, 20])]
    k, v = torch.randn(2, 2, 3, 3, 8)
    pool.put_tokens(slots, k, v)
    assert all(torch.equal(one, other) for one, other in zip(pool.get_tokens(slots), (k, v), strict=True))
