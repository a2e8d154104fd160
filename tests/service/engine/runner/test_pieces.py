"""Forwards in pieces: what lies between attentions is launched again as captured, and the logits are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eval.bench.gpu.tape import Tape
from service.engine.params import SamplingParams
from service.engine.request import Request
from service.engine.runner.cuda_graphs import GraphedRunner, run_eagerly
from service.engine.runner.pieces import WANTED, PiecedForwards, piece_sizes
from service.engine.step import Slice

from ..conftest import generate, make_engine

SIZES = [16, 48, 80]


def no_host_code(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model's modules ran in the midst of the service")

    monkeypatch.setattr(model, "forward", fail)
    monkeypatch.setattr(model.base_model, "forward", fail)


def graphed(engine: Any, tape: Tape) -> GraphedRunner:
    pool = engine.runner.pool
    return GraphedRunner(engine.loaded.model, pool, [], 32, run_eagerly, recorder=tape, sizes=SIZES)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_a_mixed_step_in_pieces_gives_the_logits_of_the_plain_one(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk beside decodes, of other lengths each time, with windows and soft caps."""
    engine = make_engine(family)
    requests = []
    for n, length in enumerate((40, 23, 60)):
        request = Request(f"r{n}", [(7 * i + 13 * n) % 90 + 3 for i in range(length + 1)], SamplingParams())
        request.pages = engine.blocks.allocate(engine.blocks.pages_for(length + 16))
        requests.append(request)
    prompt, one, other = requests
    for request in (one, other):
        engine.runner.run([Slice(request, 0, request.token_ids[:-1], samples=False)])
    steps = [
        [Slice(r, len(r.token_ids) - 1, r.token_ids[-1:], samples=True) for r in rows]
        + [Slice(prompt, first, prompt.token_ids[first:end], samples=end == 41)]
        for rows, first, end in (([one, other], 0, 11), ([one], 11, 37), ([one, other], 37, 41))
    ]
    expected = [engine.runner.run(slices) for slices in steps]
    tape = Tape()
    runner = graphed(engine, tape)
    no_host_code(engine.loaded.model, monkeypatch)
    for slices, plain in zip(steps, expected, strict=True):
        got = runner.run(slices)
        assert got.first_row == plain.first_row
        torch.testing.assert_close(got.logits, plain.logits, rtol=1e-9, atol=1e-9)
        assert all(name.endswith("+pieces") for name in got.kernels)
    layers = engine.loaded.kv_shape.num_layers
    assert tape.captured == len(SIZES) * (layers + 1)  # and nothing since the start
    assert tape.replayed == len(steps) * (layers + 1)
    assert runner.graphs.pieced == {"prefill": 3}


@pytest.mark.parametrize("attention", ["dense", "quest:budget=96,sink=16,recent=32,dense_layers=1"])
def test_an_engine_in_pieces_gives_the_same_tokens(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts, drafts, preemption, and a policy that no graph holds; after the start no module runs."""
    prompts = [[(3 * i + n) % 20 + 3 for i in range(120 + 9 * n)] for n in range(3)]
    params = [SamplingParams(max_tokens=10, ignore_eos=True, temperature=t, seed=n, drafter="prompt_lookup",
                             attention=attention) for n, t in enumerate((0.0, 0.8, 1.0))]  # fmt: skip
    expected = [g.token_ids for g in generate(make_engine(pages=26), prompts, params)]
    engine = make_engine(pages=26)
    tape = Tape()
    engine.runner = runner = graphed(engine, tape)
    captured = tape.captured
    no_host_code(engine.loaded.model, monkeypatch)
    assert [g.token_ids for g in generate(engine, prompts, params)] == expected
    assert tape.captured == captured
    figures = runner.figures()["cuda_graphs"]
    assert figures["pieced"]["prefill"] >= 5
    assert not figures["eager"]


def test_what_cannot_be_captured_runs_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose host reads a tensor: decode and prompts run without pieces, and the reason is told."""
    engine = make_engine()
    expected = generate(engine, [[5, 6, 7]], SamplingParams(max_tokens=4))[0].token_ids
    norm = engine.loaded.model.base_model.norm
    plain = norm.forward
    monkeypatch.setattr(norm, "forward", lambda x: plain(x) if float(x.abs().max()) >= 0 else x)
    engine.runner = graphed(engine, Tape())
    assert engine.runner.graphs.refused == (
        "in pieces: RuntimeError: operation not permitted when stream is capturing: __float__"
    )
    assert generate(engine, [[5, 6, 7]], SamplingParams(max_tokens=4))[0].token_ids == expected


def test_a_step_of_more_rows_or_logits_than_any_size_runs_as_before() -> None:
    engine = make_engine()
    forwards = PiecedForwards(engine.loaded.model, engine.runner.pool, SIZES, Tape())
    assert forwards.takes(80, 80)
    assert forwards.takes(1, 16)
    assert not forwards.takes(81, 1)
    assert not forwards.takes(10, 17)


def test_sizes_waste_little() -> None:
    sizes = piece_sizes(4096)
    assert sizes == sorted(set(sizes))
    assert sizes[0] == 64
    assert sizes[-1] == 2048
    assert piece_sizes(200)[-1] >= 200
    for rows in range(65, 2049):
        held = next(size for size in sizes if size >= rows)
        assert held <= max(rows + 63, 1.25 * rows)
    assert WANTED >= 65 + 16  # a draft of 64 beside decodes
