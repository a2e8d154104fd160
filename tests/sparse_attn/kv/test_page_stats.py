"""Bounds of the keys in pages."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparse_attn.errors import PolicyError
from sparse_attn.kv.page_stats import PageStats, page_bounds

PAGE, LOGICAL, DIM, HEADS = 8, 4, 5, 2


def recomputed(key_pages, tokens):
    """(kmin, kmax) of each logical page over the given slots alone."""
    parts = PAGE // LOGICAL
    kmin, kmax = {}, {}
    for slot in tokens:
        tile = (slot // PAGE, slot % PAGE // LOGICAL)
        key = key_pages[slot // PAGE, :, slot % PAGE].float()
        kmin[tile] = torch.minimum(kmin.get(tile, key), key)
        kmax[tile] = torch.maximum(kmax.get(tile, key), key)
    assert all(part < parts for _, part in kmin)
    return kmin, kmax


@given(
    lengths=st.lists(st.integers(1, 13), min_size=1, max_size=8),
    rejected=st.lists(st.integers(0, 6), min_size=8, max_size=8),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_incremental_bounds_are_recomputed_bounds(lengths, rejected, seed, dtype):
    """Text grows by chunks; after each, drafts are written and thrown away; then the pages get a new owner."""
    g = torch.Generator().manual_seed(seed)
    num_pages = 16
    key_pages = torch.zeros(num_pages, HEADS, PAGE, DIM, dtype=dtype)
    stats = PageStats(1, num_pages, HEADS, PAGE, DIM, logical=LOGICAL)
    for _owner in range(2):
        table = torch.randperm(num_pages, generator=g)
        slots = (table[:, None] * PAGE + torch.arange(PAGE)).flatten()
        length = 0
        for count, extra in zip(lengths, rejected, strict=False):
            for first, end in ((length, length + count), (length + count, length + count + extra)):
                written = torch.cat([slots[first:end], torch.tensor([-1])])
                key_pages[slots[first:end] // PAGE, :, slots[first:end] % PAGE] = torch.randn(
                    end - first, HEADS, DIM, generator=g
                ).to(dtype)
                stats.update(0, key_pages, written)
            length += count
            # The draft is rejected: the next text overwrites it. Complete logical pages of text are exact at any time.
            complete = slots[: length // LOGICAL * LOGICAL].tolist()
            kmin, kmax = recomputed(key_pages, complete)
            for (page, part), low in kmin.items():
                torch.testing.assert_close(stats.kmin[0][page, :, part], low, atol=0, rtol=0)
                torch.testing.assert_close(stats.kmax[0][page, :, part], kmax[page, part], atol=0, rtol=0)
        if not any(rejected[: len(lengths)]):
            kmin, kmax = recomputed(key_pages, slots[:length].tolist())
            for (page, part), low in kmin.items():  # without drafts the unfinished page is exact too
                torch.testing.assert_close(stats.kmin[0][page, :, part], low, atol=0, rtol=0)


def test_rebuilding_gives_what_updating_gave(make_sequence):
    seq = make_sequence(64, dim=DIM)
    seq.key_pages.zero_()
    seq.store(0, 64)
    other = PageStats(1, len(seq.key_pages), 2, 16, DIM)
    other.rebuild(0, seq.key_pages)
    used = seq.table.long()
    torch.testing.assert_close(other.kmin[0][used], seq.stats.kmin[0][used], atol=0, rtol=0)
    torch.testing.assert_close(other.kmax[0][used], seq.stats.kmax[0][used], atol=0, rtol=0)


@pytest.mark.parametrize("num_heads", [2, 8])
def test_a_bound_is_never_below_a_score_of_its_page(make_sequence, num_heads):
    seq = make_sequence(160, num_heads=num_heads, page_size=32, dtype=torch.float32)
    seq.store(0, 160)
    bounds = seq.stats.bounds(0, seq.q, seq.table)  # [n, Hq, P]
    scores = torch.einsum("qhd,khd->qhk", seq.q, seq.k.repeat_interleave(num_heads // 2, 1))
    assert (bounds >= scores.unflatten(2, (-1, 32)).amax(-1) - 1e-4).all()
    tight = torch.einsum("qhd,khd->qhk", seq.q.abs(), seq.k.abs().repeat_interleave(num_heads // 2, 1))
    assert (bounds <= tight.amax(-1, keepdim=True) * 16).all()


@pytest.mark.parametrize("num_heads", [2, 14])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bounds_read_in_place_are_their_definition(make_sequence, num_heads, dtype):
    seq = make_sequence(160, num_heads=num_heads, dim=24, page_size=32, dtype=torch.float32)
    seq.store(0, 160)
    q, pages = seq.q[3:6].to(dtype), seq.table[:4]
    got = seq.stats.bounds(0, q, pages)
    assert got.shape == (3, num_heads, 4)
    torch.testing.assert_close(got, page_bounds(q, seq.stats.kmin[0], seq.stats.kmax[0], pages))
    assert seq.stats.bounds(0, q, pages[:0]).shape == (3, num_heads, 0)


def test_a_page_of_one_key_has_an_exact_bound(make_sequence):
    seq = make_sequence(40, dtype=torch.float32)
    seq.store(0, 1)
    bound = seq.stats.bounds(0, seq.q[5:6], seq.table[:1])[0, :, 0]
    # The other logical pages of a page are another's or empty; only this one counts here.
    exact = (seq.q[5] * seq.k[0].repeat_interleave(2, 0)).sum(-1)
    torch.testing.assert_close(bound, exact)


def test_pages_that_logical_pages_do_not_divide_are_refused():
    with pytest.raises(PolicyError, match="pages of 24 tokens cannot be cut"):
        PageStats(1, 4, 2, 24, 8)
