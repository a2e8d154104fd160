"""A GPU's fused layers under Triton's interpreter: the logits of the modules, in few launches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from drafters.tree import DraftTree
from eval.bench.gpu.launches import layer_launches
from service.engine.params import SamplingParams
from service.engine.request import Request
from service.engine.runner import fused_gpu_layers
from service.engine.runner.fused_gpu_layers import fuse_gpu_layers
from service.engine.runner.model_runner import ModelRunner
from service.engine.step import Slice
from sparse_attn import backend
from sparse_attn.backend import attach
from sparse_attn.kernels import triton_kernels
from sparse_attn.kv.pool import KVPool

from ..conftest import make_model


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (backend, fused_gpu_layers):
        monkeypatch.setattr(module, "select_kernels", lambda *_: triton_kernels())


def stepped(family: str, kv: torch.dtype = torch.float32, **changes: Any) -> tuple[ModelRunner, list[Slice]]:
    """A runner over the modules as transformers has them, and a decode step of a token and a small tree."""
    model = make_model(family, dtype=torch.float32, **changes)
    pool = KVPool(attach(model), 12, 16, kv)
    runner, slices = ModelRunner(model, pool), []
    for n, (length, tree) in enumerate(((21, None), (5, DraftTree.of([7, 9, 11], [-1, 0, 0])))):
        request = Request(f"r{n}", [(7 * i + n) % 90 + 3 for i in range(length + 1)], SamplingParams())
        request.pages = [(page,) for page in range(4 * n, 4 * n + 4)]
        runner.run([Slice(request, 0, request.token_ids[:length], samples=False)])
        slices.append(Slice(request, length, request.token_ids[-1:], True, tree))
    return runner, slices


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "smollm3"])
def test_the_logits_are_those_of_the_modules(family: str, interpreted: None) -> None:
    runner, slices = stepped(family)
    expected = runner.run(slices).logits
    keys = [page.clone() for page in runner.pool.groups[0].keys]
    for page in runner.pool.groups[0].keys:
        page[1, :, 5] = page[4, :, 5:9] = 0  # what the step writes
    assert fuse_gpu_layers(runner.model)
    got = runner.run(slices)
    assert got.kernels == {"triton+fused"}
    torch.testing.assert_close(got.logits, expected, rtol=2e-4, atol=2e-4)
    for page, before in zip(runner.pool.groups[0].keys, keys, strict=True):
        torch.testing.assert_close(page[:-1], before[:-1], rtol=1e-4, atol=1e-4)  # the last is for nobody's rows


@pytest.mark.parametrize("kv", [torch.float32, torch.int8])
def test_a_layer_is_at_most_fifteen_launches(kv: torch.dtype, interpreted: None) -> None:
    own = layer_launches(kv, "qwen3")
    assert own["_place_kernel"] == own["_in_pages_kernel"] == own["_silu_mul_kernel"] == 1
    assert own["_add_norm_kernel"] == 2
    assert own.total() <= 15, own


def test_a_prompts_chunk_and_a_watched_layer_are_the_modules(interpreted: None) -> None:
    runner, slices = stepped("llama")
    assert fuse_gpu_layers(runner.model)
    seen: list[Any] = []
    handle = runner.model.base_model.layers[1].register_forward_hook(lambda *_: seen.append(1))
    assert runner.run(slices).kernels == {"triton"}
    assert seen
    handle.remove()
    request = Request("long", [5] * 40, SamplingParams())
    request.pages = [(9,), (10,), (11,)]
    assert "triton+fused" not in runner.run([Slice(request, 0, [5] * 40, samples=False)]).kernels
