"""Planning decode for a batch gives each sequence the index and the state that planning it alone gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from service.engine.options import parse_policy
from sparse_attn.batch import AttnBatch, GroupTables
from sparse_attn.kv.head_layout import HeadLayout
from sparse_attn.kv.pool import KVPool, KVShape
from sparse_attn.plan.decode_plan import all_dense, can_plan, plan_decode
from sparse_attn.plan.forward_plan import plan_sequence
from sparse_attn.plan.policy import ModelShape
from sparse_attn.plan.state import PolicyState

PAGE, HEADS, KV_HEADS, DIM, LAYERS = 16, 4, 2, 16, 2
MODEL = ModelShape(LAYERS, HEADS, KV_HEADS, DIM, PAGE, 1024)
QUEST = "quest:gate=0,budget=160,sink=16,recent=64,interval=4,dense_layers=0"


class Batch:
    """Sequences of random keys in pages; steps of decode rows, some with trees."""

    def __init__(self, prompts: list[int], policy: str, layout: HeadLayout | None = None) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.prompts, self.policy = prompts, policy
        groups = layout.num_groups if layout is not None else 1
        pages = groups * len(prompts) * 40
        self.pool = KVPool(KVShape(LAYERS, KV_HEADS, DIM), pages, PAGE, layout=layout)
        self.pool.keep_stats()
        order = torch.randperm(pages, generator=self.generator).int()
        self.tables = order.view(groups, len(prompts), 40)
        for s, length in enumerate(prompts):
            self._write(s, range(length))
        self.lengths = list(prompts)

    def states(self) -> list[PolicyState]:
        return [PolicyState(parse_policy(self.policy), MODEL, n) for n in self.prompts]

    def step(self, states: list[PolicyState], depths: list[list[int]], masks: list[torch.Tensor | None]) -> AttnBatch:
        counts = [len(d) for d in depths]
        bounds = torch.tensor([0, *counts]).cumsum(0).int()
        positions = [n + d for n, own in zip(self.lengths, depths, strict=True) for d in own]
        return AttnBatch(
            pool=self.pool,
            cu_seqlens=bounds,
            context_lens=torch.tensor(self.lengths, dtype=torch.int32),
            tables=[GroupTables(tables, torch.full((sum(counts),), -1)) for tables in self.tables],
            positions=torch.tensor(positions),
            tree_masks=masks,
            policies=states,
        )

    def grow(self, s: int, count: int) -> None:
        self._write(s, range(self.lengths[s], self.lengths[s] + count))
        self.lengths[s] += count

    def _write(self, s: int, order: range) -> None:
        at = torch.tensor(list(order))
        for layer in range(LAYERS):
            k, v = (torch.randn(len(at), KV_HEADS, DIM, generator=self.generator) for _ in range(2))
            for group, tables in zip(self.pool.groups, self.tables, strict=True):
                slots = tables[s].long()[at // PAGE] * PAGE + at % PAGE
                group.write(layer, slots, self.pool.encode(k, v))


def tree() -> tuple[list[int], torch.Tensor]:
    """Root, two chains of three below it: depths, and ancestor-or-self."""
    parents = [-1, 0, 1, 2, 0, 4, 5]
    mask = torch.eye(7, dtype=torch.bool)
    for i in range(1, 7):
        mask[i] |= mask[parents[i]]
    return [0, 1, 2, 3, 1, 2, 3], mask


APART = HeadLayout(groups=(((0,), (0, 1)), ((1,), ())))  # one head each in the first layer, none in the second
LSERVE = "lserve:budget=160,sink=16,local=48,recent=64,prefill_local=64,interval=4,heads="


@pytest.mark.parametrize("policy", [QUEST, "streaming:sink=16,local=64,block=16", LSERVE])
@pytest.mark.parametrize("window", [0, 300])
@pytest.mark.parametrize("layout", [None, APART])
def test_a_batch_is_planned_as_its_sequences_are(
    policy: str, window: int, layout: HeadLayout | None, tmp_path: Path
) -> None:
    if policy == LSERVE:  # one streaming head a layer, not the same
        (tmp_path / "alpha.tsv").write_text("0.9\t0.1\n0.2\t0.8\n")
        policy += str(tmp_path / "alpha.tsv")
    batch = Batch([330, 200, 461], policy, layout)
    alone, together = batch.states(), batch.states()
    for step in range(9):
        depths: list[list[int]] = [[0], [0, 1, 2], [0]]
        masks: list[torch.Tensor | None] = [None, None, None]
        if step % 3 == 1:
            depths[0], masks[0] = tree()
        if step == 5:  # as after a resumption
            alone[2], together[2] = (states[2] for states in (batch.states(), batch.states()))
        ones, whole = batch.step(alone, depths, masks), batch.step(together, depths, masks)
        for layer in range(LAYERS):
            assert can_plan(whole, layer, window)
            q = torch.randn(len(whole.positions), HEADS, DIM, generator=batch.generator)
            k = torch.zeros(len(q), KV_HEADS, DIM)
            index = plan_decode(whole, layer, whole.operands(q, k, k, DIM**-0.5, window=window))
            index.validate(num_kv_heads=KV_HEADS, num_q_heads=HEADS, page_size=PAGE)
            for s in range(3):
                part = plan_sequence(ones, s, layer, ones.operands(q, k, k, DIM**-0.5, window=window))
                expected = part.index
                assert expected is not None
                n = len(part.rows.q)
                for row in range(n):  # the keys that it may see
                    got = index.mask(s, slice(row, row + 1), batch.lengths[s] + n)
                    want = expected.mask(0, slice(row, row + 1), batch.lengths[s] + n)
                    assert torch.equal(got, want), (step, layer, s, row)
        for one, other, own in zip(alone, together, depths, strict=True):
            kept = [0, 1] if len(own) > 1 else [0]
            one.commit(kept)
            other.commit(kept)
        for s, own in enumerate(depths):
            batch.grow(s, 2 if len(own) > 1 else 1)
    for one, other in zip(alone, together, strict=True):
        assert one.decode_stats.late_selections == other.decode_stats.late_selections
        assert one.decode_stats.density == pytest.approx(other.decode_stats.density)
        assert 0 < other.decode_stats.density < 1


def test_a_dense_layer_is_seen_and_counted_as_when_planned_alone() -> None:
    batch = Batch([330, 200], QUEST.replace("dense_layers=0", "dense_layers=1"))
    alone, together = batch.states(), batch.states()
    depths, masks = [[0], [0, 1, 2]], [None, None]
    ones, whole = batch.step(alone, depths, masks), batch.step(together, depths, masks)
    assert all_dense(whole, 0, 0)
    assert not all_dense(whole, 1, 0)
    q, k = torch.zeros(4, HEADS, DIM), torch.zeros(4, KV_HEADS, DIM)
    for s in range(2):
        assert plan_sequence(ones, s, 0, ones.operands(q, k, k, 1.0)).index is None
        assert alone[s].decode_stats.visited == together[s].decode_stats.visited > 0
        assert alone[s].decode_stats.causal == together[s].decode_stats.causal


def test_what_cannot_be_planned_together_is_planned_alone() -> None:
    batch = Batch([330, 200], QUEST)
    states = batch.states()
    masks: list[torch.Tensor | None] = [None, None]
    assert can_plan(batch.step(states, [[0], [0]], masks), 0, 0)
    assert not can_plan(batch.step([states[0], None], [[0], [0]], masks), 0, 0)  # type: ignore[list-item]
    other = PolicyState(parse_policy(QUEST.replace("160", "128")), MODEL, 200)
    assert not can_plan(batch.step([states[0], other], [[0], [0]], masks), 0, 0)
    in_prefill = PolicyState(parse_policy(QUEST), MODEL, 400)
    assert not can_plan(batch.step([states[0], in_prefill], [[0], [0]], masks), 0, 0)
    assert not can_plan(batch.step(states, [[0], [0]], masks), 0, window=64)
    skipping = PolicyState(parse_policy("skip:gate=0"), MODEL, batch.prompts[0])
    for company in ([skipping, skipping], [skipping, states[1]]):
        for layer in range(LAYERS):  # its rows leave out tiles, of which a plan for all would know nothing
            step = batch.step(company, [[0], [0]], masks)
            assert not can_plan(step, layer, 0)
            assert not all_dense(step, layer, 0)
