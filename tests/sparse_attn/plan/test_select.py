"""Top-k and top-p over blocks and pages."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_attn.blocks import PAD
from sparse_attn.plan.select import best_pages, page_weights, top_k, top_p


def weights(seed, rows=5, blocks=12):
    g = torch.Generator().manual_seed(seed)
    w = torch.rand(rows, blocks, generator=g) ** 4
    w[:, 9:] = 0.0
    return w


@given(seed=st.integers(0, 999), p=st.floats(0.01, 1.0))
def test_top_p_reaches_its_mass_with_the_fewest_blocks(seed, p):
    w = weights(seed).double()
    chosen = top_p(w, p)
    mass = (w * chosen).sum(-1)
    assert (mass >= p * w.sum(-1) - 1e-9).all()
    least = torch.where(chosen, w, torch.inf).amin(-1)
    assert (mass - least < p * w.sum(-1)).all()
    assert not chosen[:, 9:].any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), p=st.floats(0.01, 1.0))
def test_forced_blocks_stay_and_count(seed, p):
    w = weights(seed).double()
    forced = torch.zeros(12, dtype=torch.bool)
    forced[[0, 11]] = True
    chosen = top_p(w, p, forced=forced)
    assert chosen[:, [0, 11]].all()
    assert ((w * chosen).sum(-1) >= p * w.sum(-1) - 1e-9).all()
    rest = chosen & ~forced
    forced_mass = (w * forced).sum(-1)
    assert not rest[forced_mass >= p * w.sum(-1)].any()


@given(seed=st.integers(0, 999), k=st.integers(0, 15))
def test_top_k_takes_the_best_and_never_an_excluded_block(seed, k):
    w = weights(seed)
    w[:, 9:] = -torch.inf
    forced = torch.zeros(12, dtype=torch.bool)
    forced[3] = True
    chosen = top_k(w, k, forced=forced)
    assert (chosen.sum(-1) == min(max(k, 1), 9)).all()
    assert chosen[:, 3].all()
    assert not chosen[:, 9:].any()
    others = w.masked_fill(forced, torch.nan)
    kept = torch.where(chosen & ~forced, others, torch.inf).amin(-1)
    dropped = torch.where(~chosen & ~forced, others, -torch.inf).amax(-1)
    assert (kept >= dropped).all()


def test_weights_are_shared_by_the_group_and_cover_the_candidates():
    bounds = torch.randn(3, 6, 10, generator=torch.Generator().manual_seed(0)) * 4
    weights = page_weights(bounds, 0.5, 2, first=1, end=torch.tensor([10, 5, 1]))
    assert weights.shape == (3, 2, 10)
    torch.testing.assert_close(weights[:2].clamp(min=0).sum(-1), torch.ones(2, 2))
    assert (weights[1, :, 5:] == -torch.inf).all()
    assert (weights[..., 0] == -torch.inf).all()
    assert (weights[2] == -torch.inf).all()
    group = (bounds[0, :3, 1:10] * 0.5).softmax(-1).mean(0)
    torch.testing.assert_close(weights[0, 0, 1:], group)


@settings(max_examples=50, deadline=None)
@given(k=st.integers(1, 12), p=st.floats(0.05, 1.0), seed=st.integers(0, 99))
def test_best_pages_are_few_ascending_and_reach_the_share(k, p, seed):
    weights = torch.rand(2, 3, 9, generator=torch.Generator().manual_seed(seed)) ** 3
    weights[..., 7:] = -torch.inf
    chosen = best_pages(weights, k, p)
    best = weights.clamp(min=0).topk(min(k, 9)).values
    for r in range(2):
        for h in range(3):
            ids = [i for i in chosen[r, h].tolist() if i != PAD]
            assert ids == sorted(set(ids))
            assert chosen[r, h, : len(ids)].tolist() == ids
            assert len(ids) <= min(k, 7)
            assert weights[r, h, ids].sum() >= p * best[r, h].sum() - 1e-6
            if p == 1.0:
                assert len(ids) == min(k, 7)
