"""The engine against transformers: the same logits and the same greedy ids, for every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loading.checkpoint import prepare
from service.engine.params import SamplingParams
from service.engine.request import Request
from service.engine.step import Slice
from service.errors import ModelError
from sparse_attn.kv.pool import KVPool

from .conftest import FAMILIES, SIZES, generate, make_engine, make_model

LENGTHS = [70, 5, 33]


def reference_attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float, **kw: Any):
    """transformers' eager attention without its cast of the softmax to float32."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scaling
    if kw.get("softcap"):
        scores = torch.tanh(scores / kw["softcap"]) * kw["softcap"]
    weights = torch.softmax(scores + attention_mask, -1)
    return (weights @ value).transpose(1, 2), weights


AttentionInterface.register("reference64", reference_attention)
AttentionMaskInterface.register("reference64", eager_mask)


def prompts(vocab: int = SIZES["vocab_size"]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, vocab, (n,), generator=generator).tolist() for n in LENGTHS]


def reference(family: str) -> Any:
    model = make_model(family)
    model.set_attn_implementation("reference64")
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [16, 24, 512])
def test_logits_equal_those_of_transformers(family: str, chunk: int) -> None:
    engine = make_engine(family)
    expected = reference(family)
    runner = engine.runner
    requests = [Request(str(i), ids, SamplingParams()) for i, ids in enumerate(prompts())]
    got: dict[str, torch.Tensor] = {}
    for request in requests:
        request.pages = engine.blocks.allocate(engine.blocks.pages_for(request.prompt_len))
    while any(r.num_pending for r in requests):
        parts = []
        for r in requests:
            count = min(chunk, r.num_pending)
            if count:
                ids = r.token_ids[r.num_computed : r.num_computed + count]
                parts.append(Slice(r, r.num_computed, ids, samples=count == r.num_pending))
        forward = runner.run(parts)
        for part, row in zip(parts, forward.first_row, strict=True):
            part.request.num_computed += len(part.token_ids)
            if row >= 0:
                got[part.request.id] = forward.logits[row]
    for request in requests:
        with torch.inference_mode():
            want = expected(input_ids=torch.tensor([request.token_ids])).logits[0, -1]
        assert (got[request.id] - want).abs().max() < 1e-9


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_ids_equal_those_of_generate(family: str) -> None:
    engine = make_engine(family)
    expected = reference(family)
    results = generate(engine, prompts(), SamplingParams(max_tokens=24))
    for ids, result in zip(prompts(), results, strict=True):
        out = expected.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)
        assert result.token_ids == out[0, len(ids) :].tolist()
    engine.check_integrity()
    assert engine.blocks.num_owned == 0


def test_longrope_keeps_its_numbers_whatever_runs_beside() -> None:
    factors = [1.0 + i / 4 for i in range(8)]
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": factors,
        "original_max_position_embeddings": 64,
    }
    changes = {"rope_parameters": rope, "original_max_position_embeddings": 64}
    alone, together = (
        Engine(prepare("phi3", make_model("phi3", **changes)), EngineConfig(dtype="float64", kv_memory=1 << 24))
        for _ in range(2)
    )
    params = SamplingParams(max_tokens=8)
    short = prompts()[1]
    assert (
        generate(alone, [short], params)[0].token_ids == generate(together, [short, prompts()[0]], params)[0].token_ids
    )


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "dynamic RoPE",
        ),
        ("gemma3", {"use_bidirectional_attention": True}, "both directions"),
    ],
)
def test_unsupported_features_are_refused_by_name(family: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        prepare(family, make_model(family, **changes))


def test_attention_sinks_and_linear_layers_are_refused_by_name() -> None:
    from transformers import AutoModelForCausalLM, GptOssConfig, MambaConfig, Qwen3NextConfig

    small = {k: v for k, v in SIZES.items() if k != "pad_token_id"}
    torch.manual_seed(0)
    sinks = AutoModelForCausalLM.from_config(GptOssConfig(**small, num_local_experts=2, num_experts_per_tok=1)).eval()
    with pytest.raises(ModelError, match="s_aux"):
        prepare("gpt-oss", sinks)
    linear = AutoModelForCausalLM.from_config(Qwen3NextConfig(**small, num_experts=2)).eval()
    with pytest.raises(ModelError, match="linear_attention"):
        prepare("qwen3-next", linear)
    mamba = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2)).eval()
    with pytest.raises(ModelError, match="mamba"):
        prepare("mamba", mamba)


def test_pool_pages_are_sized_from_the_keys_the_model_makes() -> None:
    loaded = prepare("qwen3", make_model("qwen3"))
    assert (loaded.kv_shape.num_layers, loaded.kv_shape.num_kv_heads, loaded.kv_shape.head_dim) == (
        3,
        2,
        16,
    )
    pool = KVPool(loaded.kv_shape, num_pages=4, page_size=16)
    assert pool.groups[0].keys[0].shape == (5, 2, 16, 16)
