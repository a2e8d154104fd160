"""What layers ask of a batch is made once, and says what the whole batch says."""

from __future__ import annotations

import itertools

import torch

from sparse_attn.batch import AttnBatch, EarlierNodes, GroupTables
from sparse_attn.kv.pool import KVPool, KVShape


def batch(counts: list[int], contexts: list[int], **options: object) -> AttnBatch:
    rows, sequences = sum(counts), len(counts)
    tables = [
        GroupTables(torch.arange(sequences * 4).view(sequences, 4).int() + group, torch.arange(rows) + group)
        for group in range(2)
    ]
    bounds = torch.tensor([0, *counts]).cumsum(0).int()
    pool = KVPool(KVShape(1, 2, 8), 20, 16)
    return AttnBatch(pool, bounds, torch.tensor(contexts), tables, torch.arange(rows) * 10, **options)  # type: ignore[arg-type]


def test_each_sequence_alone_has_its_own_rows_and_tables_in_every_group() -> None:
    masks = [None, torch.ones(3, 3, dtype=torch.bool).tril(), None]
    whole = batch([2, 3, 1], [5, 0, 9], tree_masks=masks, needed=[1, 1, 1])
    assert whole.sequences is whole.sequences
    for s, one in enumerate(whole.sequences):
        rows = whole.rows(s)
        assert one.bounds == [0, rows.stop - rows.start]
        assert one.lengths == [whole.lengths[s]]
        assert one.host_positions == whole.host_positions[rows]
        assert one.tree_masks == [masks[s]]
        assert one.needed is None
        for own, every in zip(one.tables, whole.tables, strict=True):
            assert torch.equal(own.block_tables, every.block_tables[s : s + 1])
            assert torch.equal(own.slot_mapping, every.slot_mapping[rows])
        assert one.kernels is whole.kernels
        assert one.kept is not whole.kept


def test_the_only_sequence_of_a_batch_is_the_batch() -> None:
    one = batch([4], [7])
    assert one.sequences[0] is one


def test_neighbours_that_are_alike_run_together() -> None:
    whole = batch([1, 3, 200, 1, 1], [5, 9, 0, 7, 8])
    counts = [end - begin for begin, end in itertools.pairwise(whole.bounds)]
    spans = whole.runs(lambda s: counts[s] < 100 or -1 - s)
    assert spans == [(0, 2), (2, 3), (3, 5)]
    last = whole.span(3, 5)
    assert last is whole.span(3, 5)
    assert (last.bounds, last.lengths) == ([0, 1, 2], [7, 8])
    assert whole.span(0, 5) is whole


def test_the_last_rows_have_the_rows_before_them_as_context() -> None:
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    last, rows = batch([4, 2, 3], [10, 20, 30], tree_masks=[mask, None, None]).last_rows([2, 0, 1])
    assert rows.tolist() == [2, 3, 8]
    assert last.bounds == [0, 2, 3]
    assert last.lengths == [12, 32]
    assert last.host_positions == [20, 30, 80]
    assert torch.equal(last.tree_masks[0], mask[2:, 2:])  # type: ignore[index, arg-type]
    assert [own.slot_mapping.tolist() for own in last.tables] == [[2, 3, 8], [3, 4, 9]]
    assert [own.block_tables[:, 0].tolist() for own in last.tables] == [[0, 8], [1, 9]]


def test_a_growing_tree_with_its_earlier_nodes_is_one_tree() -> None:
    earlier = EarlierNodes([], torch.tensor([7, 8]), torch.tensor([[True, False], [True, True]]))
    own = torch.eye(2, dtype=torch.bool)
    whole = batch([2], [7], earlier=earlier, tree_masks=[own]).with_earlier
    assert whole.bounds == [0, 4]
    assert whole.lengths == [0]
    assert whole.host_positions == [7, 8, 0, 10]
    expected = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]).bool()
    assert torch.equal(whole.tree_masks[0], expected)  # type: ignore[index, arg-type]


def test_pages_that_were_dropped_are_known() -> None:
    one = batch([1], [40])
    assert one.present_pages is None
    other = batch([1], [40])
    other.tables[1].block_tables[0, 1] = other.pool.num_pages
    assert other.present_pages is not None
    assert [pages.tolist() for pages in other.present_pages] == [[[True] * 4], [[True, False, True, True]]]
