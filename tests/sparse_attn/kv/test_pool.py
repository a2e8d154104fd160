"""The pool: head groups, int8 pages, pages that leave and come back, and what all of it weighs."""

from __future__ import annotations

import pytest
import torch

from sparse_attn.errors import PolicyError
from sparse_attn.kv.head_layout import HeadLayout
from sparse_attn.kv.pool import KVPool, KVShape, bytes_per_page

SHAPE = KVShape(2, 3, 16)
PAGE = 16
GROUPS = HeadLayout.split([(1,), (0, 2)], 3)
POOLS = [(torch.float32, None), (torch.float32, GROUPS), (torch.int8, None), (torch.int8, GROUPS)]


def make_pool(dtype: torch.dtype, layout: HeadLayout | None = None, pages: int = 6) -> KVPool:
    return KVPool(SHAPE, pages, PAGE, dtype, layout=layout)


def fill(pool: KVPool, slots: list[list[int]], seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Write random tokens to the slots of each group; what attention reads of them, a (k, v) a layer."""
    generator = torch.Generator().manual_seed(seed)
    read = []
    for layer in range(SHAPE.num_layers):
        k, v = (torch.randn(len(slots[0]), 3, 16, generator=generator) for _ in range(2))
        rows = pool.encode(k, v)
        for group, own in zip(pool.groups, slots, strict=True):
            group.write(layer, torch.tensor(own), rows)
        read.append((rows.k, rows.v))
    return read


def held(pool: KVPool, slots: list[list[int]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What the slots give back, all heads joined."""
    found = []
    for layer in range(SHAPE.num_layers):
        k, v = (torch.full((len(slots[0]), 3, 16), torch.nan) for _ in range(2))
        for group, own in zip(pool.groups, slots, strict=True):
            heads = list(group.heads[layer])
            k[:, heads], v[:, heads] = group.read(layer, torch.tensor(own), torch.float32)
        found.append((k, v))
    return found


def slots_of(pool: KVPool, count: int) -> list[list[int]]:
    """Slots of so many tokens: each group in pages of its own."""
    size = -(-count // PAGE) * PAGE
    return [list(range(g * size, g * size + count)) for g in range(pool.layout.num_groups)]


def assert_same(one: list[tuple[torch.Tensor, torch.Tensor]], other: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for (k, v), (k2, v2) in zip(one, other, strict=True):
        assert torch.equal(k, k2)
        assert torch.equal(v, v2)


def test_a_layout_is_a_partition_of_the_heads() -> None:
    assert GROUPS.groups == (((0, 2), (1,)), ((1,), (0, 2)))
    assert GROUPS.tiles == 3
    assert [GROUPS.first_tile(g, 1) for g in (0, 1)] == [2, 1]
    assert HeadLayout.split([(), ()], 3) == HeadLayout.whole(2, 3) == HeadLayout.split([(0, 1, 2)] * 2, 3)
    assert (HeadLayout.whole(2, 3).name(), GROUPS.name()) == ("", "1|0,2")
    with pytest.raises(PolicyError, match="no partition"):
        HeadLayout((((0, 1),), ((1,),)))


@pytest.mark.parametrize(("dtype", "layout"), POOLS)
def test_attention_reads_the_same_numbers_new_and_from_pages(dtype: torch.dtype, layout: HeadLayout | None) -> None:
    pool = make_pool(dtype, layout)
    slots = slots_of(pool, 20)
    assert_same(fill(pool, slots), held(pool, slots))


@pytest.mark.parametrize(("dtype", "layout"), POOLS)
def test_a_page_that_left_comes_back_with_all_it_had(dtype: torch.dtype, layout: HeadLayout | None) -> None:
    pool = make_pool(dtype, layout)
    pool.keep_stats()
    slots = slots_of(pool, PAGE)
    written = fill(pool, slots)
    pages = [own[0] // PAGE for own in slots]
    contents = [pool.get_page(page) for page in pages]
    fill(pool, slots, seed=1)
    for page, content in zip(pages, contents, strict=True):
        pool.put_page(5 - page, content)
        for name, part in pool.get_page(5 - page).items():
            assert torch.equal(part, content[name]), name
    moved = [[slot % PAGE + (5 - page) * PAGE for slot in own] for own, page in zip(slots, pages, strict=True)]
    assert_same(written, held(pool, moved))


def test_a_page_without_bounds_gets_them_when_it_comes_back() -> None:
    pool, ranking = make_pool(torch.int8), make_pool(torch.int8)
    ranking.keep_stats()
    for each in (pool, ranking):
        fill(each, slots_of(each, PAGE))
    expected = ranking.get_page(0)
    ranking.put_page(3, pool.get_page(0))
    assert torch.equal(ranking.get_page(3)["kmin"], expected["kmin"])
    with pytest.raises(RuntimeError, match="not of this pool"):
        make_pool(torch.float32).put_page(0, expected)
    with pytest.raises(RuntimeError, match="not of this pool"):
        pool.put_page(0, {"keys": expected["keys"]})


@pytest.mark.parametrize(("dtype", "layout"), POOLS)
def test_copied_tokens_take_their_scales_and_bounds_along(dtype: torch.dtype, layout: HeadLayout | None) -> None:
    """Accepted nodes of a tree move; then page and bounds are those of tokens that were written there at once."""
    pool, plain = make_pool(dtype, layout), make_pool(dtype, layout)
    for each in (pool, plain):
        each.keep_stats()
    slots = slots_of(pool, 12)
    written = fill(pool, slots)
    for own in slots:
        pool.copy_slots(torch.tensor([own[i] for i in (7, 9, 11)]), torch.tensor([own[i] for i in (5, 6, 7)]))
    order = [0, 1, 2, 3, 4, 7, 9, 11]
    kept = [own[:8] for own in slots]
    assert_same([(k[order], v[order]) for k, v in written], held(pool, kept))
    for layer in range(SHAPE.num_layers):
        k, v = fill(make_pool(torch.float32, layout), slots)[layer]
        rows = plain.encode(k[order], v[order])
        for group, own in zip(plain.groups, kept, strict=True):
            group.write(layer, torch.tensor(own), rows)
    for mine, theirs in zip(pool.groups, plain.groups, strict=True):
        for layer in range(SHAPE.num_layers):
            for side in ("kmin", "kmax"):
                assert torch.equal(getattr(mine.stats, side)[layer], getattr(theirs.stats, side)[layer])


def test_bounds_of_int8_pages_hold_for_the_keys_before_quantisation() -> None:
    pool = make_pool(torch.int8, GROUPS)
    pool.keep_stats()
    slots = slots_of(pool, PAGE)
    generator = torch.Generator().manual_seed(3)
    k = torch.randn(PAGE, 3, 16, generator=generator) * torch.tensor([0.01, 1.0, 50.0])[:, None]
    rows = pool.encode(k, k)
    for group, own in zip(pool.groups, slots, strict=True):
        group.write(0, torch.tensor(own), rows)
        heads, page = list(group.heads[0]), own[0] // PAGE
        assert group.stats is not None
        low, high = group.stats.kmin[0][page, :, 0], group.stats.kmax[0][page, :, 0]
        assert (low <= k[:, heads].amin(0)).all()
        assert (high >= k[:, heads].amax(0)).all()
        step = k.abs().amax(-1).amax(0)[heads] / 127
        assert ((k[:, heads].amin(0) - low) <= 1.01 * step[:, None]).all()


def test_the_pool_tells_what_it_weighs() -> None:
    """By its own tensors, less the page that nobody reads."""
    for dtype, layout in POOLS:
        pool = make_pool(dtype, layout)
        assert pool.stats_bytes == 0
        pool.keep_stats()
        weight = sum(part[:-1].numel() * part.element_size() for part in pool._parts.values())
        assert weight == pool.num_pages * (pool.page_bytes + pool.stats_bytes)
        assert pool.page_bytes == bytes_per_page(SHAPE, PAGE, dtype, layout)
    assert SHAPE.bytes_per_token(torch.float32) * PAGE == bytes_per_page(SHAPE, PAGE, torch.float32)
    assert SHAPE.bytes_per_token(torch.int8) == 2 * 2 * 3 * (16 + 2)
    # Two groups of three heads each: a page of both is a page of all six.
    assert 2 * bytes_per_page(SHAPE, PAGE, torch.float32, GROUPS) == bytes_per_page(SHAPE, PAGE, torch.float32)


def test_writing_to_slot_minus_one_is_seen_by_nobody() -> None:
    pool = make_pool(torch.int8, GROUPS)
    before = [pool.get_page(page) for page in range(pool.num_pages)]
    fill(pool, [[-1, -1], [-1, -1]])
    for page, content in enumerate(before):
        assert all(torch.equal(part, content[name]) for name, part in pool.get_page(page).items())
