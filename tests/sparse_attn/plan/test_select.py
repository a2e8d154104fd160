"""Top-k and top-p over blocks."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_attn.plan.select import top_k, top_p


def weights(seed, rows=5, blocks=12):
    g = torch.Generator().manual_seed(seed)
    w = torch.rand(rows, blocks, generator=g) ** 4
    w[:, 9:] = 0.0
    return w


@settings(max_examples=80, deadline=None)
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


@settings(max_examples=80, deadline=None)
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
