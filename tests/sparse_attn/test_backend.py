"""The attention function over pools of one and of several head groups: the same bits, whatever a batch carries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_attn.backend import paged_attention_forward
from sparse_attn.batch import AttnBatch, EarlierNodes, GroupTables
from sparse_attn.kernels import select_kernels
from sparse_attn.kv.head_layout import HeadLayout
from sparse_attn.kv.pool import KVPool, KVShape
from sparse_attn.plan import forward_plan
from sparse_attn.plan.policies import LServe, Quest, SkipSoftmax
from sparse_attn.plan.policy import ModelShape, Policy
from sparse_attn.plan.state import PolicyState

LAYERS, HEADS, KV_HEADS, DIM, PAGE, WIDTH = 2, 6, 3, 16, 16, 12
MODEL = ModelShape(LAYERS, HEADS, KV_HEADS, DIM, PAGE, 512)
APART = HeadLayout((((0, 2), (0, 1, 2)), ((1,), ())))
QUEST = Quest(budget=128, sink=16, recent=48, dense_layers=0, interval=4)


class Pool:
    """Contexts of random keys in shuffled pages of a pool."""

    def __init__(self, contexts: list[int], layout: HeadLayout | None, dtype: torch.dtype) -> None:
        g = torch.Generator().manual_seed(0)
        groups = layout.num_groups if layout is not None else 1
        count = groups * len(contexts) * WIDTH
        self.kv = KVPool(KVShape(LAYERS, KV_HEADS, DIM), count, PAGE, dtype, layout=layout)
        self.kv.keep_stats()
        order = torch.randperm(count, generator=torch.Generator().manual_seed(groups))
        self.tables, self.contexts = order.int().view(groups, len(contexts), WIDTH), contexts
        for layer in range(LAYERS):
            for s, context in enumerate(contexts):
                k, v = (torch.randn(context, KV_HEADS, DIM, generator=g) for _ in "kv")
                for number, group in enumerate(self.kv.groups):
                    group.write(layer, self.slots(number, s, torch.arange(context)), self.kv.encode(k, v))

    def slots(self, group: int, s: int, at: Tensor) -> Tensor:
        return self.tables[group][s].long()[at // PAGE] * PAGE + at % PAGE

    def batch(self, counts: list[int], **options: Any) -> AttnBatch:
        """So many new rows behind each context, and behind nodes that lie there already."""
        skipped = len(options["earlier"].positions) if "earlier" in options else 0
        order = [c + skipped + torch.arange(n) for c, n in zip(self.contexts, counts, strict=True)]
        every = range(len(counts))
        return AttnBatch(
            self.kv,
            torch.tensor([0, *counts]).cumsum(0).int(),
            torch.tensor(self.contexts, dtype=torch.int32),
            [
                GroupTables(tables, torch.cat([self.slots(group, s, order[s]) for s in every]))
                for group, tables in enumerate(self.tables)
            ],
            options.pop("positions", torch.cat(order)),
            **options,
        )


def tree(n: int) -> Tensor:
    """A root, and two branches of every other node."""
    rows = torch.arange(n)
    return ((rows[:, None] - rows) % 2 == 0).tril() | (rows == 0)


def decoding(pool: Pool) -> AttnBatch:
    return pool.batch([1, 5, 1], tree_masks=[None, tree(5), None])


def last_rows(pool: Pool) -> AttnBatch:
    return pool.batch([30, 5, 1], needed=[1, 0, 1])


def planned(policy: Policy, **options: Any) -> Callable[[Pool], AttnBatch]:
    """The first sequence has a policy and decodes, the second has one and prefills, the third has none."""

    def make(pool: Pool) -> AttnBatch:
        prompts = [pool.contexts[0], pool.contexts[1] + 16]
        states: list[PolicyState | None] = [PolicyState(policy, MODEL, n) for n in prompts]
        return pool.batch([3, 9, 1], policies=[*states, None], **options)

    return make


def growing(pool: Pool) -> AttnBatch:
    """Three nodes below two that an earlier forward has run, and a page that was dropped."""
    context = pool.contexts[0]
    slots = [pool.slots(group, 0, context + torch.arange(2)) for group in range(len(pool.tables))]
    generator = torch.Generator().manual_seed(3)
    for layer in range(LAYERS):
        k, v = (torch.randn(2, KV_HEADS, DIM, generator=generator) for _ in "kv")
        for own, group in zip(slots, pool.kv.groups, strict=True):
            group.write(layer, own, pool.kv.encode(k, v))
    pool.tables[:, 0, 2] = pool.kv.num_pages
    visible = torch.tensor([[True, False], [False, True], [True, False]])
    earlier = EarlierNodes(slots, torch.tensor([context, context]), visible)
    own = torch.tensor([[True, False, False], [False, True, False], [True, False, True]])
    positions = context + torch.tensor([1, 1, 2])
    return pool.batch([3], positions=positions, tree_masks=[own], earlier=earlier)


SCENES: dict[str, tuple[list[int], Callable[[Pool], AttnBatch]]] = {
    "decode rows and a tree": ([100, 37, 0], decoding),
    "the last rows of prompts": ([100, 37, 5], last_rows),
    "policies": ([150, 64, 20], planned(QUEST)),
    "streaming heads": ([150, 64, 20], planned(LServe(budget=96, sink=16, recent=16, local=16, streaming=0))),
    "policies, last rows": ([150, 64, 20], planned(QUEST, needed=[3, 0, 1])),
    "a growing tree": ([100], growing),
}


def attend(pool: Pool, make: Callable[[Pool], AttnBatch]) -> list[Tensor]:
    """Outputs of every layer, and what is in the pages afterwards."""
    batch, g, outputs = make(pool), torch.Generator().manual_seed(1), []
    for layer in range(LAYERS):
        q, k, v = noise(len(batch.positions), g)
        module: Any = SimpleNamespace(layer_idx=layer)
        outputs.append(paged_attention_forward(module, q, k, v, None, softcap=20.0, attn=batch)[0])
        pairs = zip(pool.kv.groups, batch.tables, strict=True)
        held = [group.read(layer, own.slot_mapping, k.dtype) for group, own in pairs]
        order = torch.tensor([h for group in pool.kv.groups for h in group.heads[layer]]).argsort()
        outputs += [torch.cat(parts, dim=1)[:, order] for parts in zip(*held, strict=True)]
    return outputs


def noise(rows: int, g: torch.Generator) -> tuple[Tensor, ...]:
    """q, k and v as transformers gives them."""
    return tuple(torch.randn(1, heads, rows, DIM, generator=g) for heads in (HEADS, KV_HEADS, KV_HEADS))


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_head_groups_attend_as_one_group_does_to_the_bit(scene: str, dtype: torch.dtype) -> None:
    if not select_kernels(torch.device("cpu"), torch.float32).row_invariant:
        pytest.skip("no C++ compiler for the CPU kernels")
    contexts, make = SCENES[scene]
    together = attend(Pool(contexts, None, dtype), make)
    apart = attend(Pool(contexts, APART, dtype), make)
    assert all(map(torch.equal, together, apart))
    assert all(bool(out.isfinite().all()) for out in together)
    assert together[0].count_nonzero() > 0


def test_a_growing_tree_does_not_see_what_a_dropped_page_held() -> None:
    outputs = []
    for content in (0.0, 5.0):
        pool = Pool([100], APART, torch.float32)
        for group in pool.kv.groups:
            for pages in (*group.keys, *group.values):
                pages[-1] = content
        outputs.append(attend(pool, growing))
    assert all(map(torch.equal, *outputs))


@pytest.mark.parametrize("policy", [Policy(), QUEST])
def test_the_last_rows_attend_as_they_do_among_all(policy: Policy) -> None:
    contexts = [150, 64, 20]
    every = attend(Pool(contexts, APART, torch.float32), planned(policy))
    some = attend(Pool(contexts, APART, torch.float32), planned(policy, needed=[2, 0, 1]))
    last_layer = -3
    assert torch.equal(some[last_layer][0, [1, 2, 12]], every[last_layer][0, [1, 2, 12]])
    assert some[last_layer][0, :1].count_nonzero() == some[last_layer][0, 3:12].count_nonzero() == 0


def test_a_growing_tree_is_the_tree_at_once() -> None:
    """In two forwards, the second reading the first's nodes from their slots, or in one."""
    mask = tree(7)
    context, known = 100, 3
    q, k, v = noise(7, torch.Generator().manual_seed(2))
    positions = context + mask.sum(1) - 1
    module: Any = SimpleNamespace(layer_idx=0)
    whole = Pool([context], None, torch.float32).batch([7], positions=positions, tree_masks=[mask])
    expected = paged_attention_forward(module, q, k, v, None, attn=whole)[0]

    pool = Pool([context], None, torch.float32)
    first = pool.batch([known], positions=positions[:known], tree_masks=[mask[:known, :known]])
    paged_attention_forward(module, *(x[:, :, :known] for x in (q, k, v)), None, attn=first)
    earlier = EarlierNodes([own.slot_mapping for own in first.tables], positions[:known], mask[known:, :known])
    second = pool.batch([4], positions=positions[known:], tree_masks=[mask[known:, known:]], earlier=earlier)
    got = paged_attention_forward(module, *(x[:, :, known:] for x in (q, k, v)), None, attn=second)[0]
    torch.testing.assert_close(got, expected[:, known:], rtol=0, atol=1e-5)


def test_a_chunk_beside_decodes_attends_apart_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: decodes before and behind a chunk are planned by themselves, where a policy sees everything too."""
    monkeypatch.setattr(forward_plan, "PREFILL_ROWS", 20)
    states = [PolicyState(replace(QUEST, dense_layers=1), MODEL, n) for n in (100, 37, 40, 90)]
    for policies in (None, states):
        pool = Pool([100, 37, 5, 90], None, torch.float32)
        batch = pool.batch([1, 3, 30, 1], policies=policies)
        q, k, v = (x.squeeze(0).transpose(0, 1) for x in noise(35, torch.Generator().manual_seed(1)))
        rows = batch.operands(q, k, v, 0.25)
        parts = forward_plan.chunks_apart(batch, 0, rows)
        assert [part.at for part in parts] == [slice(0, 4), slice(4, 34), slice(34, 35)]
        kernels = select_kernels(torch.device("cpu"), torch.float32)
        pages = [pool.kv.groups[0].pages(0, part.batch.tables[0].block_tables) for part in parts]
        got = [kernels.attention(own, part.rows)[0] for own, part in zip(pages, parts, strict=True)]
        expected, _ = kernels.attention(pool.kv.groups[0].pages(0, batch.tables[0].block_tables), rows)
        torch.testing.assert_close(torch.cat(got), expected)
    assert states[0].decode_stats.visited == states[0].decode_stats.causal > 0


def test_a_sequence_that_leaves_out_tiles_is_apart_from_those_that_see_everything() -> None:
    """As on a GPU, where decodes are attended together otherwise."""
    pool = Pool([100, 37, 90], None, torch.float32)
    skipping = PolicyState(SkipSoftmax(gate=0), MODEL, 37)
    batch = pool.batch([1, 2, 1], policies=[None, skipping, None])
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in noise(4, torch.Generator().manual_seed(1)))
    parts = forward_plan.chunks_apart(batch, 0, batch.operands(q, k, v, 0.25))
    assert [(part.at, part.rows.skip is not None) for part in parts] == [
        (slice(0, 1), False),
        (slice(1, 3), True),
        (slice(3, 4), False),
    ]
