"""Decoder layers in one call give the bits of the modules, for every family and kind of step that they serve."""

from __future__ import annotations

import pytest
import torch

from drafters.tree import DraftTree
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loading.checkpoint import prepare
from service.engine.params import SamplingParams
from service.engine.request import Request
from service.engine.runner import fused_layers
from service.engine.step import Slice
from sparse_attn.kernels import select_kernels

from ..conftest import generate, make_model

pytestmark = pytest.mark.skipif(
    not select_kernels(torch.device("cpu"), torch.float32).row_invariant, reason="no C++ compiler for the CPU kernels"
)

FUSED = {
    "llama": {},
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
    "llama of one key a query": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": {},
    "qwen3 in windows": {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    "mistral": {},
    "mistral without windows": {"sliding_window": None},
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "phi3": {},
    "phi3 in windows, half rotated": {"sliding_window": 20, "partial_rotary_factor": 0.5},
    "gemma2": {},
    "gemma3": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
}


def make(name: str, **options) -> Engine:
    model = make_model(name.split()[0], dtype=torch.float32, **FUSED.get(name, {}))
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too: 1 and 0 would hide a wrong one
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter))))
    config = EngineConfig(**{"dtype": "float32", "kv_memory": 4 << 20, "page_size": 16, "step_tokens": 64, **options})
    return Engine(prepare(name, model), config)


def body(engine: Engine):
    return engine.loaded.model.base_model


@pytest.fixture
def calls(monkeypatch) -> list[list[int]]:
    """The layers of every call of the fused decoder."""
    seen: list[list[int]] = []
    run = fused_layers.Decoder.run

    def keep(self, x, angles, batch, chosen):
        seen.append(list(chosen))
        run(self, x, angles, batch, chosen)

    monkeypatch.setattr(fused_layers.Decoder, "run", keep)
    return seen


def two_sequences(engine: Engine) -> list[Slice]:
    """A decode step behind 75 tokens with a tree, and one behind 33 without."""
    generator = torch.Generator().manual_seed(5)
    parts = []
    for length, tree in ((75, DraftTree.of([9, 8, 7, 6, 5], [-1, 0, 0, 1, -1])), (33, None)):
        prompt = torch.randint(3, 97, (length,), generator=generator).tolist()
        request = Request(f"r{length}", prompt, SamplingParams())
        request.pages = engine.blocks.allocate(engine.blocks.pages_for(length + 8))
        for start in range(0, length, 64):
            engine.runner.run([Slice(request, start, prompt[start : start + 64], samples=False)])
        parts.append(Slice(request, length, [prompt[0]], samples=True, tree=tree))
    return parts


def kv(engine: Engine, parts: list[Slice]) -> list[torch.Tensor]:
    """K and V of every layer, in the pages of the parts."""
    pages = [place[0] for part in parts for place in part.request.pages]
    [group] = engine.runner.pool.groups
    return [held[pages].clone() for held in (*group.keys, *group.values)]


@pytest.mark.parametrize("name", FUSED)
def test_logits_and_kv_are_those_of_the_modules(name, calls, monkeypatch):
    engine = make(name)
    parts = two_sequences(engine)
    calls.clear()
    fused = engine.runner.run(parts)
    fused_kv = kv(engine, parts)
    assert calls == [[0, 1, 2]]
    assert fused.kernels == {"cpu-c++"}

    monkeypatch.setattr(fused_layers, "_chosen", lambda *_: None)
    modules = engine.runner.run(parts)
    assert len(calls) == 1
    assert fused.logits.std() > 0.1
    assert torch.equal(fused.logits, modules.logits)
    assert all(map(torch.equal, fused_kv, kv(engine, parts)))


def test_a_model_with_another_activation_or_an_adapter_keeps_its_forward():
    assert "forward" not in vars(prepare("llama", make_model(dtype=torch.float32, hidden_act="gelu")).model.base_model)
    adapted = make_model(dtype=torch.float32)
    adapted.model.layers[1].mlp.up_proj = torch.nn.Sequential(adapted.model.layers[1].mlp.up_proj)
    assert "forward" not in vars(prepare("llama", adapted).model.base_model)
    assert "forward" not in vars(prepare("llama", make_model(dtype=torch.float64)).model.base_model)


def test_a_skipped_layer_is_left_out_and_a_hooked_one_is_called(calls, monkeypatch):
    engine = make("llama")
    parts = two_sequences(engine)
    whole = engine.runner.run(parts).logits
    layer = body(engine).layers[1]

    layer.forward = fused_layers.pass_on
    calls.clear()
    skipped = engine.runner.run(parts).logits
    assert calls == [[0, 2]]
    with monkeypatch.context() as patch:
        patch.setattr(fused_layers, "_chosen", lambda *_: None)
        assert torch.equal(engine.runner.run(parts).logits, skipped)
    assert not torch.equal(skipped, whole)
    del layer.forward

    seen: list[int] = []
    handle = layer.register_forward_hook(lambda *_: seen.append(1))
    calls.clear()
    assert torch.equal(engine.runner.run(parts).logits, whole)
    assert (calls, seen) == ([], [1])
    handle.remove()


@pytest.fixture
def halves(monkeypatch) -> list[int]:
    """The layers that were run in halves."""
    seen: list[int] = []
    after = fused_layers.Decoder.after

    def keep(self, layer, x, attended):
        seen.append(layer)
        after(self, layer, x, attended)

    monkeypatch.setattr(fused_layers.Decoder, "after", keep)
    return seen


@pytest.mark.parametrize(
    "options", [{"kv_dtype": "int8"}, {"attention": "lserve:streaming=0,budget=160,sink=16,recent=64"}]
)
def test_what_needs_a_plan_is_run_in_halves(options, calls, halves, monkeypatch):
    def tokens():
        engine = make("qwen3 in windows" if "kv_dtype" in options else "llama", **options)
        params = SamplingParams(max_tokens=3, ignore_eos=True, logprobs=5)
        [found] = generate(engine, [list(range(3, 90)) * 5], params)
        return found.token_ids, found.logprobs

    fused = tokens()
    assert calls == []
    assert set(halves) == {0, 1, 2}
    monkeypatch.setattr(fused_layers, "_chosen", lambda *_: None)
    assert fused == tokens()


def test_decoding_is_one_call_and_a_prompt_is_not(calls, halves):
    engine = make("llama", drafter="none")
    generate(engine, [list(range(3, 90))], SamplingParams(max_tokens=4, ignore_eos=True))
    assert calls == [[0, 1, 2]] * 3
    assert halves == [0, 1, 2] * 2  # two chunks


def test_bounds_of_keys_are_kept_up(monkeypatch):
    engine = make("llama")
    engine.runner.keep_stats()
    parts = two_sequences(engine)
    engine.runner.run(parts)
    stats = engine.runner.pool.groups[0].stats
    kept = [bounds.clone() for bounds in (*stats.kmin, *stats.kmax)]
    monkeypatch.setattr(fused_layers, "_chosen", lambda *_: None)
    engine.runner.run(parts)
    assert all(map(torch.equal, kept, (*stats.kmin, *stats.kmax)))
