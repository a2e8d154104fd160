"""The last layer attends for the rows whose output is read: the logits are those of attending for all, to the bit."""

from __future__ import annotations

import pytest
import torch

from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loading.checkpoint import prepare
from service.engine.params import SamplingParams

from .conftest import generate, make_model

SMALL = {"kv_memory": 8 << 20, "page_size": 16, "step_tokens": 96, "prefix_cache": False, "drafter": "none"}


def logits_of(engine, prompts, attention, every_row):
    """Logits of every sampling step of the prompts, run together."""
    seen, run = [], engine.runner.run

    def keep(slices):
        for part in slices:
            part.hidden_rows = part.num_rows if every_row else 0
        forward = run(slices)
        seen.append(forward.logits.clone())
        return forward

    engine.runner.run = keep
    try:
        generate(engine, prompts, SamplingParams(max_tokens=4, ignore_eos=True, attention=attention))
    finally:
        engine.runner.run = run
    return torch.cat(seen)


@pytest.mark.parametrize(
    "attention",
    [
        "dense",
        "trianglemix:deep=1,gate=64,block=32,sink=16,local=64,last=20",
        "xattention:gate=64,block=32,stride=16,sink=16,local=32",
        "lserve:streaming=0,budget=160,sink=16,recent=64",
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_that_nobody_reads_change_no_logits(attention, dtype):
    config = EngineConfig(dtype=dtype, **SMALL)
    engine = Engine(prepare("smollm3", make_model("smollm3", dtype=getattr(torch, dtype))), config)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 97, (n,), generator=generator).tolist() for n in (410, 70, 256)]
    every = logits_of(engine, prompts, attention, every_row=True)
    some = logits_of(engine, prompts, attention, every_row=False)
    if dtype == "float32":
        assert torch.equal(every, some)
    else:  # the reference's sums depend on how many rows run together
        torch.testing.assert_close(every, some)


def test_the_last_layer_attends_for_the_last_row_alone(monkeypatch):
    from sparse_attn import backend

    rows, attend = [], backend._attend

    def counted(kernels, part, layer):
        rows.append((layer, len(part.rows.q)))
        return attend(kernels, part, layer)

    monkeypatch.setattr(backend, "_attend", counted)
    config = EngineConfig(**SMALL)
    engine = Engine(prepare("llama", make_model(dtype=torch.float32)), config)
    generate(engine, [list(range(3, 90)) * 2], SamplingParams(max_tokens=1, ignore_eos=True, attention="dense"))
    assert rows == [(0, 96), (1, 96), (0, 78), (1, 78), (2, 1)]
