"""LANTERN's rule on toy codebooks, over all draws: how much more it accepts, and what that costs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drafters.research.lantern import lantern, nearest, output, relaxed


def spread(seed, count=8, sharpness=1.0):
    random = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(count, generator=random, dtype=torch.float64)).softmax(0)


def apart(p, q):
    return float((p - q).abs().sum() / 2)


def codes(seed, count=8):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_nearest_codes_come_first_and_without_oneself():
    near = nearest(torch.tensor([[0.0], [1.0], [1.5], [4.0], [0.0]]), 3)
    assert near.tolist() == [[4, 1, 2], [2, 0, 4], [1, 0, 4], [2, 1, 0], [0, 1, 2]]


def test_a_guess_takes_its_neighbours_until_the_bound():
    p, near = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64), torch.tensor([[1, 2, 3]] * 4)
    near[1] = torch.tensor([0, 2, 3])
    assert relaxed(p, 0, near, 0.0).tolist() == p.tolist()
    assert relaxed(p, 0, near, 0.25).tolist() == pytest.approx([0.3, 0, 0.3, 0.4])
    assert relaxed(p, 0, near, 0.5).tolist() == pytest.approx([0.6, 0, 0, 0.4])
    assert relaxed(p, 1, near, 0.15).tolist() == pytest.approx([0, 0.3, 0.3, 0.4])


def test_a_rejected_guess_is_replaced_from_what_the_relaxed_target_has_more():
    p, q = (torch.tensor(row, dtype=torch.float64) for row in ([0.1, 0.2, 0.3, 0.4], [0.5, 0.1, 0.3, 0.1]))
    how = lantern(p, q, 0, torch.tensor([[1, 2, 3]] * 4), 0.25)
    assert how.accept.tolist() == pytest.approx([0.6])
    assert how.residual.tolist() == pytest.approx([0, 0, 0, 1])


@given(seed=st.integers(0, 10**6), bound=st.floats(0, 1), k=st.integers(0, 7))
def test_every_replacement_is_a_distribution_within_the_bound(seed, bound, k):
    p, near = spread(seed), nearest(codes(seed), k)
    for guess in range(8):
        out = relaxed(p, guess, near, bound)
        assert float(out.sum()) == pytest.approx(1)
        assert float(out.min()) >= 0
        assert apart(out, p) <= bound + 1e-12
        assert out[guess] >= p[guess]


@given(seed=st.integers(0, 10**6))
def test_without_relaxation_it_is_exact(seed):
    p, q = spread(seed), spread(seed + 1, sharpness=2.0)
    for k, bound in ((0, 1.0), (5, 0.0)):
        out, accepted = output(p, q, nearest(codes(seed), k), bound)
        torch.testing.assert_close(out, p)
        assert accepted == pytest.approx(1 - apart(p, q))


@given(seed=st.integers(0, 10**6), low=st.floats(0, 0.5), more=st.floats(0, 0.5))
def test_it_accepts_more_the_larger_the_bound(seed, low, more):
    p, q, near = spread(seed), spread(seed + 1, sharpness=2.0), nearest(codes(seed), 5)
    (first, few), (second, many) = (output(p, q, near, bound) for bound in (low, low + more))
    assert many >= few - 1e-12
    for out in (first, second):
        assert float(out.sum()) == pytest.approx(1)
        assert float(out.min()) >= -1e-12


def test_the_draws_are_those_that_output_says():
    p, q, near = spread(1), spread(2, sharpness=2.0), nearest(codes(3), 3)
    expected, accepted = output(p, q, near, 0.2)
    random = torch.Generator().manual_seed(0)
    seen = torch.zeros(8, dtype=torch.float64)
    for guess in torch.multinomial(q, 4000, replacement=True, generator=random).tolist():
        how = lantern(p, q, guess, near, 0.2)
        kept = float(torch.rand((), generator=random)) < how.accept[0]
        seen[guess if kept else int(torch.multinomial(how.residual, 1, generator=random))] += 1
    assert apart(seen / seen.sum(), expected) < 0.04
    assert apart(expected, p) > 0.05  # lossy
    assert accepted > 1 - apart(p, q) + 0.05


def test_the_bound_is_none_on_what_comes_out():
    """Pairs of like codes, of which the draft knows one each: each guess moves 1 / V, and all of them a half."""
    count = 8
    p = torch.full((count,), 1 / count, dtype=torch.float64)
    q = torch.tensor([2 / count, 0.0] * (count // 2), dtype=torch.float64)
    near = nearest(torch.arange(count)[:, None] // 2 * 10.0 + torch.arange(count)[:, None] % 2, 1)
    out, accepted = output(p, q, near, 1 / count)
    assert accepted == pytest.approx(1)
    assert apart(out, p) == pytest.approx(0.5)
