"""The engine on a CUDA device: replayed steps against eager ones, sparse decode of a batch, sampling."""

from __future__ import annotations

import pytest
import torch

from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loading.checkpoint import prepare
from service.engine.params import SamplingParams
from service.engine.request import Request
from service.engine.runner.cuda_graphs import Bucket, GraphCapture, GraphedRunner
from service.engine.step import Slice

from .conftest import generate, make_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PROMPTS = [[(7 * i + n) % 90 + 3 for i in range(110 + 50 * n)] for n in range(3)]


def gpu_engine(**options: object) -> Engine:
    model = make_model("llama", dtype=torch.bfloat16, head_dim=64).to("cuda")
    config = EngineConfig(
        **{"dtype": "bfloat16", "device": "cuda", "page_size": 16, "kv_memory": 1 << 26, "max_running": 4, **options}
    )
    return Engine(prepare("llama", model), config)


def test_a_replayed_step_gives_the_eager_logits() -> None:
    engine = gpu_engine(cuda_graphs=False)
    pool, slices = engine.runner.pool, []
    for n, prompt in enumerate(PROMPTS):
        request = Request(f"r{n}", prompt, SamplingParams())
        request.pages = engine.blocks.allocate(engine.blocks.pages_for(len(prompt) + 4))
        engine.runner.run([Slice(request, 0, prompt[:-1], samples=False)])
        slices.append(Slice(request, len(prompt) - 1, prompt[-1:], samples=True))
    expected = engine.runner.run(slices).logits
    graphed = GraphedRunner(engine.loaded.model, pool, [Bucket(4, 4), Bucket(4, 32)], 16, GraphCapture())
    assert graphed.graphs.refused is None
    for _ in range(3):
        torch.testing.assert_close(graphed.run(slices).logits, expected, atol=0.06, rtol=0.02)
    assert graphed.graphs.replayed == 3


@pytest.mark.parametrize("attention", ["dense", "quest:budget=96,sink=16,recent=32,dense_layers=1"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_requests_run_to_their_ends_in_graphs_and_without(attention: str, temperature: float) -> None:
    params = SamplingParams(
        max_tokens=24, ignore_eos=True, drafter="prompt_lookup", attention=attention, temperature=temperature
    )
    for graphs in (True, False):
        engine = gpu_engine(cuda_graphs=graphs)
        results = generate(engine, PROMPTS, params)
        assert [len(r.token_ids) for r in results] == [24, 24, 24]
        assert any(name.startswith("triton") for name in engine.stats()["kernels"])
        engine.check_integrity()
        if graphs and attention == "dense":
            assert engine.stats()["cuda_graphs"]["replayed"] > 0


@pytest.mark.parametrize("attention", ["dense", "quest:budget=96,sink=16,recent=32,dense_layers=1"])
def test_no_step_is_launched_kernel_by_kernel(attention: str) -> None:
    """Prompts beside decodes run in pieces, decodes whole, with the selection of pages inside."""
    engine = gpu_engine(attention=attention)
    params = SamplingParams(max_tokens=24, ignore_eos=True, drafter="prompt_lookup")
    assert [len(r.token_ids) for r in generate(engine, PROMPTS, params)] == [24, 24, 24]
    figures = engine.stats()["cuda_graphs"]
    assert figures["refused"] is None
    assert not figures["eager"]
    assert set(figures["pieced"]) == {"prefill"}
    assert figures["replayed"] > 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_no_token_depends_on_drafts_and_company_where_the_batch_is_invariant(temperature: float, kv_dtype: str) -> None:
    expected = None
    for drafter in ("none", "prompt_lookup", "suffix", "recycling:budget=16"):
        engine = gpu_engine(batch_invariant=True, kv_dtype=kv_dtype)
        params = SamplingParams(
            max_tokens=48, ignore_eos=True, drafter=drafter, attention="dense", temperature=temperature
        )
        found = [answer.token_ids for answer in generate(engine, PROMPTS, params)]
        assert any("invariant" in name for name in engine.stats()["kernels"])
        alone = [generate(engine, [prompt], params)[0].token_ids for prompt in PROMPTS]
        expected = expected or found
        assert found == alone == expected, drafter


def test_steps_that_are_read_late_bring_the_same_tokens() -> None:
    params = SamplingParams(max_tokens=40, ignore_eos=True, drafter="none", attention="dense", temperature=0.8)
    found = []
    for late in (False, True):
        engine = gpu_engine()
        engine.overlaps = late
        found.append([answer.token_ids for answer in generate(engine, PROMPTS, params)])
        assert (engine.stats()["overlap"]["overlapped"] > 20) == late
    assert found[0] == found[1]
