"""Pages selected within a captured step: the logits, selections and statistics of planning each sequence alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from drafters.tree import DraftTree
from eval.bench.gpu.tape import Tape, kernels_of_a_gpu
from service.engine.options import parse_policy
from service.engine.params import SamplingParams
from service.engine.request import Request
from service.engine.runner import cuda_graphs
from service.engine.runner.cuda_graphs import Bucket, GraphedRunner
from service.engine.runner.fused_gpu_layers import fuse_gpu_layers
from service.engine.runner.model_runner import ModelRunner
from service.engine.step import Slice
from sparse_attn.backend import attach
from sparse_attn.kernels import work
from sparse_attn.kv.pool import KVPool
from sparse_attn.plan.graph_selection import GraphRule
from sparse_attn.plan.policy import ModelShape
from sparse_attn.plan.state import PolicyState

from ..conftest import make_model

PAGE = 16
SHAPE = ModelShape(2, 4, 2, 16, PAGE)
PROMPTS = (150, 40)  # the second is within the budget, and sees everything
QUEST = "quest:budget=96,sink=16,recent=32,interval=2,dense_layers=1"
LSERVE = "lserve:budget=96,sink=16,recent=32,local=32,interval=4,prefill_local=64,heads="
STREAMING = "streaming:sink=16,local=32,block=16"


class Beside:
    """The same steps run from graphs on a tape and by plain forwards, each with policy states of its own."""

    def __init__(self, policy: str, monkeypatch: pytest.MonkeyPatch, fused: bool = False) -> None:
        monkeypatch.setattr(work, "PROGRAMS", 4)
        monkeypatch.setattr(work, "SHARE_KEYS", 32)
        monkeypatch.setattr(cuda_graphs, "TUNING_TOKENS", 120)
        model = make_model("llama", dtype=torch.float32, num_hidden_layers=2)
        self.pool = KVPool(attach(model), 32, PAGE)
        self.pool.keep_stats()
        self.policy = parse_policy(policy)
        self.policy.check(SHAPE)
        self.plain = ModelRunner(model, self.pool)
        self.requests = []
        for n, length in enumerate(PROMPTS):
            request = Request(f"r{n}", [(7 * i + 13 * n) % 90 + 3 for i in range(length + 1)], SamplingParams())
            request.pages = [(page,) for page in range(16 * n, 16 * n + 16)]
            self.plain.run([Slice(request, 0, request.token_ids[:length], samples=False)])
            self.requests.append(request)
        self.alone, self.within = ([PolicyState(self.policy, SHAPE, n) for n in PROMPTS] for _ in range(2))
        assert not fused or fuse_gpu_layers(model)
        self.kernels = {"triton+fused+graph" if fused else "triton+graph"}
        with kernels_of_a_gpu():
            rule = GraphRule.of(self.policy, SHAPE)
            assert rule is not None
            self.tape = Tape()
            self.graphed = GraphedRunner(model, self.pool, [Bucket(2, 4)], 16, self.tape, rule=rule)
        assert self.graphed.graphs.refused is None
        self.captured = self.tape.captured

    def step(self, trees: list[DraftTree | None]) -> None:
        """One decode step of all; the pending tokens are accepted."""
        slices = [
            Slice(r, len(r.token_ids) - 1, r.token_ids[-1:], True, tree)
            for r, tree in zip(self.requests, trees, strict=True)
        ]
        for request, state in zip(self.requests, self.alone, strict=True):
            request.policy = state
        expected = self.plain.run(slices)
        for request, state, part in zip(self.requests, self.within, slices, strict=True):
            request.policy = state
            for order in range(part.start, part.start + part.num_rows):  # the graph writes keys of its own
                for keys in self.pool.groups[0].keys:
                    keys[request.pages[order // PAGE][0], :, order % PAGE] = 9.0
        with kernels_of_a_gpu():
            got = self.graphed.run(slices)
        assert got.kernels == self.kernels
        torch.testing.assert_close(got.logits, expected.logits, rtol=2e-4, atol=2e-4)
        for request, one, other in zip(self.requests, self.alone, self.within, strict=True):
            one.commit([0])
            other.commit([0])
            request.token_ids.append(int(expected.logits[0].argmax()))


TREE = DraftTree.of([5, 9], [-1, -1])


@pytest.mark.parametrize("policy", [QUEST, *(pytest.param(p, marks=pytest.mark.slow) for p in (LSERVE, STREAMING))])
def test_a_captured_step_selects_the_pages_of_its_sequences(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if policy == LSERVE:  # one streaming head a layer, not the same
        (tmp_path / "alpha.tsv").write_text("0.9\t0.1\n0.2\t0.8\n")
        policy += str(tmp_path / "alpha.tsv")
    both = Beside(policy, monkeypatch, fused=policy != QUEST)
    steps: list[list[DraftTree | None]] = [[None, None], [TREE, None]]  # chosen by the token; kept, and by the nodes
    for trees in steps:
        both.step(trees)
    assert both.tape.captured == both.captured  # and nothing since the start
    assert both.graphed.graphs.replayed == len(steps)
    for one, other in zip(both.alone, both.within, strict=True):
        assert one.selected.keys() >= other.selected.keys()
        for layer, found in other.selected.items():
            assert found.position == one.selected[layer].position
            assert torch.equal(found.first_recent, one.selected[layer].first_recent)
        assert one.decode_stats.late_selections == other.decode_stats.late_selections
    densities = [states[0].decode_stats.density for states in (both.within, both.alone)]
    assert densities[0] == pytest.approx(densities[1], abs=0.01)
    assert 0.2 < densities[0] < 0.95


@pytest.mark.slow
def test_a_sequence_that_comes_back_selects_late_and_one_may_be_planned_either_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = Beside(QUEST, monkeypatch)
    both.step([None, None])
    both.alone[0], both.within[0] = (PolicyState(both.policy, SHAPE, PROMPTS[0]) for _ in range(2))
    both.step([None, None])
    assert both.within[0].decode_stats.late_selections == both.alone[0].decode_stats.late_selections == 1
    both.alone, both.within = both.within, both.alone  # what one chose the other goes on with
    both.step([None, None])


def test_what_is_no_single_rule_stays_out_of_graphs() -> None:
    assert GraphRule.of(parse_policy("dense"), SHAPE) is None
    assert GraphRule.of(parse_policy("xattention"), SHAPE) is None
    assert GraphRule.of(parse_policy("skip"), SHAPE) is None
    found = GraphRule.of(parse_policy(QUEST), SHAPE)
    assert found is not None
    assert list(found.streaming) == [1]
    assert found.holds(PolicyState(parse_policy(f"xattention+{QUEST}"), SHAPE, 10))
    assert not found.holds(PolicyState(parse_policy(QUEST.replace("96", "112")), SHAPE, 10))
