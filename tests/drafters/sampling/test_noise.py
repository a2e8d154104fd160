"""The keyed noise: pinned, and exactly independent Gumbel although drawn by blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from drafters.sampling.noise import BLOCK, gumbel, noise, uniform

KEYS = 10_000
WINNER = 75  # of block 0 under (seed 0, position 0)


def exponentials(blocks: int = 2) -> np.ndarray:
    """e = exp(-g), float64 [KEYS, blocks, BLOCK], over as many positions."""
    g = gumbel(torch.full((KEYS,), 5), torch.arange(KEYS), blocks * BLOCK)
    return np.exp(-g.numpy()).reshape(KEYS, blocks, BLOCK)


def distance(values: np.ndarray) -> float:
    """Kolmogorov-Smirnov's distance from Exp(1), times the square root of the count: above 1.95 once in a thousand."""
    expected = -np.expm1(-np.sort(values.ravel()))
    count = len(expected)
    ranks = np.arange(count) / count
    return float(np.maximum(expected - ranks, ranks + 1 / count - expected).max() * count**0.5)


def test_noise_is_pinned():
    """The keys' bits are part of the contract: another value would change every sampled answer."""
    seeds, positions, tokens = torch.tensor([0, 1, -1]), torch.tensor([0, 5, 2**40]), torch.tensor([0, 7, 150_000])
    expected = [0.33805245419550556, 0.6976653006556696, 0.7302511504622792]
    assert uniform(seeds, positions, tokens).tolist() == expected
    zero = torch.tensor(0)
    got = noise(zero, zero, torch.tensor([0, WINNER, BLOCK]))
    np.testing.assert_allclose(got, [-0.08224166714113619, 6.755931659686432, 0.35692511405178734], rtol=1e-12)


def test_noise_is_gumbel_and_independent():
    g = gumbel(torch.arange(40), torch.arange(40), 5000)
    assert g.dtype == torch.float64
    assert g.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert g.var().item() == pytest.approx(np.pi**2 / 6, abs=0.03)
    flat = g.flatten()
    assert abs(np.corrcoef(flat[:-1], flat[1:])[0, 1]) < 0.01
    neighbours = gumbel(torch.tensor([3, 3]), torch.tensor([8, 9]), 5000)
    assert abs(np.corrcoef(neighbours)[0, 1]) < 0.05


def test_one_token_has_the_noise_that_all_of_them_have():
    seeds, positions = torch.arange(40), torch.arange(40)
    g = gumbel(seeds, positions, 700)
    assert torch.equal(g, noise(seeds[:, None], positions[:, None], torch.arange(700)))
    assert torch.equal(g[:, 17], noise(seeds, positions, torch.tensor(17)))
    assert torch.equal(g[:, :300], gumbel(seeds, positions, 300)), "the vocabulary's end changes nothing"


def test_every_token_is_exponential():
    e = exponentials()
    assert distance(e) < 1.95
    for place in (0, 100, BLOCK - 1):
        assert distance(e[:, :, place]) < 1.95


def test_the_order_statistics_of_a_block_are_those_of_independent_exponentials():
    """Rényi 1953: of n independent Exp(1)'s in ascending order, (n - i) (e_i+1 - e_i) are independent Exp(1)'s too."""
    e = np.sort(exponentials(1)[:, 0], axis=-1)
    spacings = np.diff(e, prepend=0.0) * np.arange(BLOCK, 0, -1)
    assert distance(spacings) < 1.95
    for rank in (0, 1, 2, BLOCK - 1):
        assert distance(spacings[:, rank]) < 1.95
    between = np.corrcoef(spacings[:, :8].T)
    assert np.abs(between - np.eye(8)).max() < 4 / KEYS**0.5


def test_the_least_falls_on_every_token_alike():
    e = exponentials(1)[:, 0]
    place, least = e.argmin(-1), e.min(-1)
    counts = np.bincount(place, minlength=BLOCK)
    expected = KEYS / BLOCK
    assert ((counts - expected) ** 2 / expected).sum() < 331  # chi-squared, 255 degrees of freedom: once in a thousand
    assert abs(np.corrcoef(place, least)[0, 1]) < 4 / KEYS**0.5, "the place says nothing of the value"


def test_tokens_are_independent_within_blocks_and_across():
    e = exponentials(2)
    first, second = e[:, 0], e[:, 1]
    bound = 4 / KEYS**0.5
    assert abs(np.corrcoef(first[:, 10], first[:, 11])[0, 1]) < bound
    assert abs(np.corrcoef(first[:, 10], second[:, 10])[0, 1]) < bound
    assert abs(np.corrcoef(first.min(-1), second.min(-1))[0, 1]) < bound
    # a token's own bits are not its block's
    for token, block in ((0, first), (1, second)):
        own = uniform(torch.full((KEYS,), 5), torch.arange(KEYS), torch.tensor(token)).numpy()
        assert abs(np.corrcoef(own, block.min(-1))[0, 1]) < bound


@pytest.mark.gpu
def test_noise_bits_are_the_same_on_a_gpu():
    seeds, positions, tokens = torch.arange(64), torch.arange(64) * 7, torch.arange(64) * 31
    here = uniform(seeds, positions, tokens)
    there = uniform(seeds.cuda(), positions.cuda(), tokens.cuda()).cpu()
    assert torch.equal(here, there)
    g = gumbel(seeds.cuda(), positions.cuda(), 1000).cpu()
    assert torch.allclose(g, gumbel(seeds, positions, 1000), rtol=1e-13, atol=1e-13)
