"""The padded decode step in fixed buffers, run without a graph, against the ordinary forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drafters.tree import DraftTree
from service.engine.options import parse_policy
from service.engine.params import SamplingParams
from service.engine.request import Request
from service.engine.runner.cuda_graphs import (
    Bucket,
    GraphedRunner,
    Replay,
    choose_bucket,
    make_buckets,
    run_eagerly,
    why_not,
)
from service.engine.step import Slice
from sparse_attn.plan.policy import ModelShape
from sparse_attn.plan.state import PolicyState

from ..conftest import generate, make_engine

BUCKETS = [Bucket(1, 1), Bucket(2, 8), Bucket(4, 4), Bucket(4, 20), Bucket(8, 12)]


def chain_and_branch(count: int) -> DraftTree:
    """A tree of ``count`` nodes: a chain with a second child below every second node."""
    parents = [-1, *(max(-1, i - 1 - i % 2) for i in range(1, count))]
    return DraftTree.of([5 + 3 * i for i in range(count)], parents)


def prefilled(engine: Any, lengths: list[int]) -> list[Request]:
    """Requests whose first tokens lie in pages, the last one pending."""
    requests = []
    for n, length in enumerate(lengths):
        request = Request(f"r{n}", [(7 * i + 13 * n) % 90 + 3 for i in range(length + 1)], SamplingParams())
        request.pages = engine.blocks.allocate(engine.blocks.pages_for(length + 16))
        if length:
            engine.runner.run([Slice(request, 0, request.token_ids[:length], samples=False)])
        requests.append(request)
    return requests


def decode(requests: list[Request], nodes: list[int]) -> list[Slice]:
    return [
        Slice(r, len(r.token_ids) - 1, r.token_ids[-1:], True, chain_and_branch(n) if n else None)
        for r, n in zip(requests, nodes, strict=True)
    ]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("nodes", [[0, 0, 0], [3, 0], [2, 7, 0], [0]])
def test_a_padded_step_gives_the_logits_of_the_plain_one(family: str, nodes: list[int]) -> None:
    engine = make_engine(family)
    requests = prefilled(engine, [37, 3, 18][: len(nodes)])
    expected = engine.runner.run(decode(requests, nodes))
    pool = engine.runner.pool
    graphed = GraphedRunner(engine.loaded.model, pool, BUCKETS, 32, run_eagerly)
    before = [keys.clone() for keys in pool.groups[0].keys]
    got = graphed.run(decode(requests, nodes))
    assert got.first_row == expected.first_row
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-9, atol=1e-9)
    for keys, kept in zip(pool.groups[0].keys, before, strict=True):  # nothing but the scratch page has changed
        torch.testing.assert_close(keys[:-1], kept[:-1])
    assert graphed.graphs.replayed == 1
    assert graphed.graphs.rows == sum(nodes) + len(nodes)


def test_an_engine_over_buckets_gives_the_same_tokens() -> None:
    """With drafts, preemption and a buffer that served other requests before."""
    prompts = [[(3 * i + n) % 20 + 3 for i in range(20 + 9 * n)] for n in range(5)]
    params = [SamplingParams(max_tokens=14, ignore_eos=True, temperature=t, seed=n, drafter="prompt_lookup")
              for n, t in enumerate((0.0, 0.8, 0.0, 1.0, 0.5))]  # fmt: skip
    plain = make_engine(pages=14)
    expected = [g.token_ids for g in generate(plain, prompts, params)]
    engine = make_engine(pages=14)
    engine.runner = GraphedRunner(engine.loaded.model, engine.runner.pool, BUCKETS, 14, run_eagerly)
    assert [g.token_ids for g in generate(engine, prompts, params)] == expected
    figures = engine.stats()["cuda_graphs"]
    assert figures["replayed"] > 10
    assert figures["eager"]["prefill"] > 0
    assert engine.stats()["preemptions"] > 0


def test_a_capture_that_fails_costs_time_and_nothing_else() -> None:
    def capture(step: Any) -> Replay:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    engine = make_engine()
    expected = generate(engine, [[5, 6, 7]], SamplingParams(max_tokens=4))[0].token_ids
    engine.runner = GraphedRunner(engine.loaded.model, engine.runner.pool, BUCKETS, 32, capture)
    assert generate(engine, [[5, 6, 7]], SamplingParams(max_tokens=4))[0].token_ids == expected
    figures = engine.stats()["cuda_graphs"]
    assert figures["refused"] == "RuntimeError: operation not permitted when stream is capturing"
    assert figures["replayed"] == 0


def test_the_largest_bucket_is_captured_first() -> None:
    engine, sizes = make_engine(), []

    def capture(step: Any) -> Replay:
        sizes.append(len(step()))
        return step

    GraphedRunner(engine.loaded.model, engine.runner.pool, [Bucket(1, 1), Bucket(4, 8), Bucket(2, 2)], 32, capture)
    assert sizes == [8, 2, 1]


def test_what_no_bucket_holds_is_said() -> None:
    engine = make_engine()
    (request,) = prefilled(engine, [60])
    pool = engine.runner.pool
    assert why_not(decode([request], [3]), pool) is None
    assert why_not([Slice(request, 0, [1, 2], True)], pool) == "prefill"
    shape = ModelShape(3, 4, 2, 16, 16)
    request.policy = PolicyState(parse_policy("streaming:sink=16,local=32,block=16"), shape, 40)
    assert why_not(decode([request], [3]), pool) == "sparse_decode"
    request.policy = PolicyState(parse_policy("xattention:gate=0,block=16,stride=8"), shape, 40)
    assert why_not(decode([request], [3]), pool) is None
    (part,) = decode([request], [3])
    part.hidden_rows = 1
    assert why_not([part], pool) == "hidden_states"
    (part,) = decode([request], [3])
    part.appended = chain_and_branch(2)
    assert why_not([part], pool) == "appended"


@given(max_running=st.integers(1, 200), counts=st.lists(st.integers(1, 80), min_size=1, max_size=70))
def test_a_bucket_holds_its_step_and_is_the_smallest(max_running: int, counts: list[int]) -> None:
    buckets = make_buckets(max_running)
    totals = [b.rows for b in buckets]
    assert totals == sorted(totals, reverse=True)
    assert choose_bucket(buckets, [1] * min(max_running, 64)) is not None
    found = choose_bucket(buckets, counts)
    fitting = [b for b in buckets if b.sequences >= len(counts) and b.rows >= sum(counts) and b.widest >= max(counts)]
    assert (found is None) == (not fitting)
    if found is not None:
        assert found in fitting
        assert found.rows == min(b.rows for b in fitting)


def test_every_draft_has_a_graph() -> None:
    """Of 1 to 64 nodes, at batches of 1 to 16; alone among plain decodes it takes little more than its rows."""
    buckets = make_buckets(16)
    for batch in range(1, 17):
        for nodes in range(65):
            assert choose_bucket(buckets, [1 + nodes] * batch) is not None
            one = choose_bucket(buckets, [1 + nodes] + [1] * (batch - 1))
            assert one is not None
            assert one.rows <= max(16 * 9, 2 * (nodes + batch))


def test_the_kernels_of_a_gpu_read_the_items_of_a_packed_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under Triton's interpreter: drafts beside plain decodes, padding behind them, items left from a longer step."""
    pytest.importorskip("triton")
    from sparse_attn import backend
    from sparse_attn.kernels import select_kernels, triton_kernels, work

    engine = make_engine()
    requests = prefilled(engine, [37, 3, 18])
    monkeypatch.setattr(work, "SHARE_KEYS", 16)
    monkeypatch.setattr(work, "PROGRAMS", 16)
    graphed = GraphedRunner(engine.loaded.model, engine.runner.pool, [Bucket(4, 14)], 32, run_eagerly)
    monkeypatch.setattr(backend, "select_kernels", lambda *_: triton_kernels())
    for nodes in ([0, 3, 6], [2, 0, 0]):
        got = graphed.run(decode(requests, nodes))
        with monkeypatch.context() as own:
            own.setattr(backend, "select_kernels", select_kernels)
            expected = engine.runner.run(decode(requests, nodes))
        assert got.kernels == {"triton+graph"}
        torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-5)


def test_pages_are_ranked_by_what_replayed_steps_wrote() -> None:
    """A request that wants page statistics comes late: steps captured before it would not keep them."""
    engine = make_engine()
    pool = engine.runner.pool
    engine.runner = runner = GraphedRunner(engine.loaded.model, pool, BUCKETS, 32, run_eagerly)
    requests = prefilled(engine, [37, 18])
    runner.keep_stats()
    runner.run(decode(requests, [0, 0]))
    assert runner.graphs.replayed == 1
    [group] = pool.groups
    assert group.stats is not None
    kept = [bounds.clone() for bounds in group.stats.kmax]
    for request, length in zip(requests, (38, 19), strict=True):
        slot = request.pages[(length - 1) // 16][0] * 16 + (length - 1) % 16
        for layer, keys in enumerate(group.keys):
            group.stats.update(layer, keys, torch.tensor([slot]))
    for bounds, before in zip(group.stats.kmax, kept, strict=True):
        torch.testing.assert_close(bounds[:-1], before[:-1])


def test_steps_are_captured_once() -> None:
    """In the midst of the service nobody waits for graphs."""
    engine, captured = make_engine(), []

    def capture(step: Any) -> Replay:
        captured.append(step)
        return step

    runner = GraphedRunner(engine.loaded.model, engine.runner.pool, [Bucket(1, 1)], 32, capture)
    runner.keep_stats()
    runner.keep_stats()
    assert len(captured) == 1
