"""Warping, keyed noise and keyed choices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drafters.errors import DrafterError
from drafters.sampling.choice import Sampling, best_choices, choose, perturb, warp
from drafters.sampling.noise import gumbel
from drafters.sampling.perturbed import insert
from drafters.sampling.walk import walk
from drafters.tree import DraftTree
from drafters.verify import Verdict, verify


def by_definition(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Temperature, top-k, top-p, each a loop over one sorted row."""
    if temperature == 0:
        out = np.zeros_like(logits)
        out[np.argmax(logits)] = 1
        return out
    z = logits / temperature
    order = sorted(range(len(z)), key=lambda i: (-z[i], i))
    kept = order[:top_k] if top_k else order
    p = np.exp(z[kept] - z[kept].max())
    p /= p.sum()
    mass, final = 0.0, []
    for token, weight in zip(kept, p, strict=True):
        if mass >= top_p and final:
            break
        final.append(token)
        mass += weight
    out = np.zeros_like(logits)
    out[final] = np.exp(z[final] - z[final].max())
    return out / out.sum()


@given(
    seed=st.integers(0, 10**6),
    vocab=st.integers(1, 600),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 3, 50, 1000]),
    top_p=st.sampled_from([0.01, 0.5, 0.9, 1.0]),
    ties=st.booleans(),
)
def test_warp_is_its_definition(seed, vocab, temperature, top_k, top_p, ties):
    logits = np.random.default_rng(seed).normal(size=vocab) * 3
    if ties:
        logits = logits.round()
    got = warp(torch.from_numpy(logits)[None], temperature, top_k, top_p)[0].exp().numpy()
    np.testing.assert_allclose(got, by_definition(logits, temperature, top_k, top_p), atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 9))
def test_a_row_does_not_depend_on_its_batch(seed, rows):
    generator = np.random.default_rng(seed)
    logits = torch.from_numpy(generator.normal(size=(rows, 700)).astype(np.float32))
    temperature = torch.from_numpy(generator.choice([0.0, 0.4, 1.0], rows))
    top_k = torch.from_numpy(generator.choice([0, 5, 300], rows))
    top_p = torch.from_numpy(generator.choice([1.0, 0.8], rows))
    seeds = torch.from_numpy(generator.integers(0, 2**62, rows))
    positions = torch.from_numpy(generator.integers(0, 10**6, rows))
    together = choose(logits, temperature, top_k, top_p, seeds, positions)
    for i in range(rows):
        one = slice(i, i + 1)
        alone = choose(logits[one], temperature[one], top_k[one], top_p[one], seeds[one], positions[one])
        assert alone[0] == together[i]


@given(
    seed=st.integers(0, 10**6),
    vocab=st.integers(1, 900),
    sharpness=st.sampled_from([0.1, 1.0, 5.0, 40.0]),
    temperature=st.sampled_from([0.2, 0.8, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 7, 256, 257, 500]),
    top_p=st.sampled_from([0.3, 0.9, 0.999, 1.0]),
    ties=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_short_cuts_choose_by_the_definition(seed, vocab, sharpness, temperature, top_k, top_p, ties, dtype):
    """Noise for every token of the kept set, and the largest sum: whatever `choose` leaves out changes nothing."""
    generator = np.random.default_rng(seed)
    logits = torch.from_numpy(generator.normal(size=(6, vocab)) * sharpness)
    logits = (logits.round() if ties else logits).to(dtype)
    seeds = torch.from_numpy(generator.integers(-(2**62), 2**62, 6))
    positions = torch.from_numpy(generator.integers(0, 10**6, 6))
    scores = warp(logits, temperature, top_k, top_p) + gumbel(seeds, positions, vocab)
    assert choose(logits, temperature, top_k, top_p, seeds, positions).tolist() == scores.argmax(-1).tolist()


@pytest.mark.parametrize("sharpness", [0.0, 0.5, 2.0, 6.0])
def test_the_bounds_never_drop_the_best(sharpness):
    """So many rows that a bound a little too tight shows."""
    rows, vocab = 4000, 700
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * sharpness
    seeds, positions = torch.full((rows,), 4), torch.arange(rows)
    expected = torch.argmax(logits / 0.8 + gumbel(seeds, positions, vocab), dim=-1)
    assert torch.equal(choose(logits, 0.8, 0, 1.0, seeds, positions), expected)


@given(
    seed=st.integers(0, 10**6),
    vocab=st.integers(1, 900),
    count=st.integers(1, 12),
    sharpness=st.sampled_from([0.1, 1.0, 5.0, 40.0]),
    temperature=st.sampled_from([0.2, 0.8, 3.0]),
    top_k=st.sampled_from([0, 7, 1000]),
    top_p=st.sampled_from([0.9, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_the_best_choices_are_those_of_the_definition(seed, vocab, count, sharpness, temperature, top_k, top_p, dtype):
    generator = np.random.default_rng(seed)
    logits = torch.from_numpy(generator.normal(size=(6, vocab)) * sharpness).to(dtype)
    sampling = Sampling(temperature, top_k, top_p, seed=seed)
    positions = generator.integers(0, 10**6, 6).tolist()
    count = min(count, vocab)
    keys = torch.full((6,), seed), torch.tensor(positions)
    expected = torch.topk(warp(logits, temperature, top_k, top_p) + gumbel(*keys, vocab), count, dim=-1)

    ids, scores = best_choices(logits, sampling, positions, count)
    kept = np.isfinite(scores)
    assert np.array_equal(kept, torch.isfinite(expected.values).numpy())
    assert np.array_equal(ids[kept], expected.indices.numpy()[kept])
    below_best = expected.values - expected.values[:, :1]
    np.testing.assert_allclose((scores - scores[:, :1])[kept], below_best.numpy()[kept], atol=1e-9)
    assert ids[:, 0].tolist() == choose(logits, temperature, top_k, top_p, *keys).tolist()


@given(
    seed=st.integers(0, 10**6),
    size=st.integers(0, 12),
    vocab=st.sampled_from([2, 3, 700]),
    temperature=st.sampled_from([0.0, 0.9]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_the_walk_is_verification_by_choices_after_every_row(seed, size, vocab, temperature, dtype):
    generator = np.random.default_rng(seed)
    parents = [int(generator.integers(-1, node)) for node in range(size)]
    logits = torch.from_numpy(generator.normal(size=(size + 1, vocab))).to(dtype)
    logits[:, :2] += 9  # so few likely tokens that many guesses are right
    tree = DraftTree.of(generator.integers(0, 2, size), parents)
    choices = choose(logits, temperature, 0, 1.0, torch.full((size + 1,), seed), torch.from_numpy(7 + tree.depths))
    assert walk(logits, tree, temperature, seed, 7) == verify(tree, choices.tolist())


def test_the_walk_looks_at_no_row_that_is_not_reached():
    logits = torch.full((4, 300), torch.nan)
    logits[[0, 2]] = 0.0
    logits[0, 5] = logits[2, 8] = 1.0
    tree = DraftTree.of([4, 5, 6], [-1, -1, 0])
    assert walk(logits, tree, 0.0, 1, 3) == Verdict((1,), (5, 8))


def test_equal_scores_are_ranked_by_their_ids():
    tokens, scores = np.array([5, 9, 0]), np.array([2.0, 1.0, -np.inf])
    for token, score in ((7, 1.0), (3, 2.0), (600, 1.0)):
        insert(score, token, tokens, scores)
    assert tokens.tolist() == [3, 5, 7]
    assert scores.tolist() == [2.0, 2.0, 1.0]


def test_hidden_tokens_are_never_chosen():
    logits = torch.full((50, 40), -torch.inf)
    logits[:, 7] = 0.0
    assert set(choose(logits, 1.0, 0, 1.0, torch.arange(50), torch.arange(50)).tolist()) == {7}


def test_choices_follow_the_distribution():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    count = 20_000
    chosen = choose(logits.expand(count, -1), 1.0, 0, 1.0, torch.full((count,), 9), torch.arange(count))
    share = np.bincount(chosen.numpy(), minlength=4) / count
    np.testing.assert_allclose(share, [0.5, 0.3, 0.15, 0.05], atol=0.012)


def test_ties_and_greedy():
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0]])
    zero = torch.zeros(1, dtype=torch.int64)
    assert choose(logits, 0.0, 0, 1.0, zero, zero).tolist() == [1]
    assert choose(logits, 1.0, 1, 1.0, zero, zero).tolist() == [1]
    assert torch.isfinite(perturb(warp(logits, 1.0, 2), zero, zero)).tolist() == [[False, True, True, False]]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_bad_parameters_are_named(options, word):
    with pytest.raises(DrafterError, match=word):
        Sampling(**options)
