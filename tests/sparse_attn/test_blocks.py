"""BlockIndex: masks in and out, cuts at absolute positions, splitting, joining, refusing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_attn.blocks import PAD, BlockIndex, query_blocks
from sparse_attn.errors import BlockIndexError

batches = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 60)), min_size=1, max_size=4)


def random_index(batch, block_q, block_k, heads=2, seed=0):
    lens, offsets = [n for n, _ in batch], [c for _, c in batch]
    blocks = len(query_blocks(lens, offsets, block_q)[1])
    width = max((n + c + block_k - 1) // block_k for n, c in batch) + 1
    mask = torch.rand(heads, blocks, width, generator=torch.Generator().manual_seed(seed)) < 0.5
    return BlockIndex.from_mask(mask, lens, offsets, block_q=block_q, block_k=block_k), mask


@given(
    batch=batches,
    block_q=st.sampled_from([1, 4, 16]),
    block_k=st.sampled_from([4, 8]),
    seed=st.integers(0, 9),
)
def test_a_mask_survives_the_round_trip_less_the_future(batch, block_q, block_k, seed):
    index, mask = random_index(batch, block_q, block_k, seed=seed)
    index.validate(num_kv_heads=2, num_q_heads=4, page_size=block_k)
    causal = torch.arange(mask.shape[2]) <= (index.last_positions // block_k)[:, None]
    assert torch.equal(index.to_mask(mask.shape[2]), mask & causal)


@given(
    batch=batches,
    block_q=st.sampled_from([1, 4, 16]),
    block_k=st.sampled_from([4, 8]),
    seed=st.integers(0, 9),
)
def test_the_two_parts_see_together_what_the_whole_sees(batch, block_q, block_k, seed):
    index, _ = random_index(batch, block_q, block_k, seed=seed)
    context, new = index.split()
    for part in (context, new):
        part.validate(num_kv_heads=2, num_q_heads=2)
    for s, (n, c) in enumerate(batch):
        rows = slice(0, n)
        whole = index.mask(s, rows, c + n)
        assert torch.equal(context.mask(s, rows, c), whole[..., :c])
        assert torch.equal(new.mask(s, rows, n), whole[..., c:])


@settings(max_examples=40, deadline=None)
@given(batch=batches, block_q=st.sampled_from([1, 4, 16]))
def test_full_visits_every_causal_block(batch, block_q):
    lens, offsets = [n for n, _ in batch], [c for _, c in batch]
    index = BlockIndex.full(lens, offsets, num_heads=2, block_q=block_q, block_k=8)
    assert index.density() == 1.0
    for s, (n, c) in enumerate(batch):
        causal = torch.arange(c + n) <= torch.arange(c, c + n)[:, None]
        assert (index.mask(s, slice(0, n), c + n) | ~causal).all()
        if n:
            part = index.mask(s, slice(n - 1, n), c + n)
            assert part.all()


def test_query_blocks_are_cut_at_absolute_positions():
    cu_rows, block_seq, last = query_blocks([10, 3], [6, 0], 8)
    assert cu_rows.tolist() == [0, 2, 10, 13]
    assert block_seq.tolist() == [0, 0, 1]
    assert last.tolist() == [7, 15, 2]


@settings(max_examples=40, deadline=None)
@given(batch=batches, block_q=st.sampled_from([4, 16]), seed=st.integers(0, 9))
def test_refining_keeps_the_keys(batch, block_q, seed):
    index, _ = random_index(batch, block_q, 8, seed=seed)
    fine = index.refine(2).validate(num_kv_heads=2, num_q_heads=2, page_size=2)
    for s, (n, c) in enumerate(batch):
        for row in range(n):
            rows, keys = slice(row, row + 1), c + row + 1
            assert torch.equal(fine.mask(s, rows, keys), index.mask(s, rows, keys))


def test_joining_sequences_and_heads():
    a, _ = random_index([(5, 9)], 4, 8, heads=2)
    b, _ = random_index([(1, 30), (7, 0)], 4, 8, heads=4, seed=1)
    both = BlockIndex.cat([a, b]).validate(num_kv_heads=4, num_q_heads=4)
    assert torch.equal(both.mask(0, slice(0, 5), 14), a.expand_heads(4).mask(0, slice(0, 5), 14))
    assert torch.equal(both.mask(1, slice(0, 1), 31), b.mask(0, slice(0, 1), 31))
    assert torch.equal(both.mask(2, slice(0, 7), 7), b.mask(1, slice(0, 7), 7))


def test_density_counts_visited_over_causal_blocks():
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, :, 0] = True  # one block each of 1 + 2 + 3 + 4
    index = BlockIndex.from_mask(mask, [32], [0], block_q=8, block_k=8)
    assert index.density() == pytest.approx(4 / 10)
    assert index.split()[1].density() == pytest.approx(4 / 10)
    assert index.split()[0].counts.sum() == 0


def test_contradictions_are_refused_by_name():
    good = BlockIndex.full([8], [8], num_heads=2, block_q=4, block_k=4)
    with pytest.raises(BlockIndexError, match="2 heads; the model has 3 KV heads and 6"):
        good.validate(num_kv_heads=3, num_q_heads=6)
    with pytest.raises(BlockIndexError, match="use refine"):
        good.validate(num_kv_heads=2, num_q_heads=6, page_size=16)
    for break_it, message in [
        (lambda i: i.ids[..., :2].copy_(i.ids[..., :2].flip(-1)), "ascend"),
        (lambda i: i.ids[..., 0].fill_(PAD), "filled up"),
        (lambda i: i.ids[..., 1, -1].fill_(9), "beyond the last row"),
        (lambda i: i.cu_rows[1].fill_(0), "1 to 4 rows"),
    ]:
        bad = BlockIndex.full([8], [8], num_heads=2, block_q=4, block_k=4)
        break_it(bad)
        with pytest.raises(BlockIndexError, match=message):
            bad.validate(num_kv_heads=2, num_q_heads=6)
    with pytest.raises(BlockIndexError, match="3 query blocks, the batch 2"):
        BlockIndex.from_mask(torch.ones(1, 3, 4, dtype=torch.bool), [8], [0], block_q=4, block_k=4)
    with pytest.raises(BlockIndexError, match="cannot serve 3 heads"):
        good.expand_heads(3)
    with pytest.raises(BlockIndexError, match="different block sizes"):
        BlockIndex.cat([good, good.refine(2)])


@pytest.mark.parametrize("count", [1, 7, 8, 20, 45])
def test_the_last_rows_see_what_they_saw(count):
    mask = torch.rand(2, 7, 14, generator=torch.Generator().manual_seed(0)) < 0.5
    index = BlockIndex.from_mask(mask, [45], [60], block_q=8, block_k=8)
    last = index.last_rows(count)
    assert last.q_offset.tolist() == [60 + 45 - count]
    assert int(last.cu_rows[-1]) == count
    keys = 60 + 45
    assert torch.equal(last.mask(0, slice(0, count), keys), index.mask(0, slice(45 - count, 45), keys))
