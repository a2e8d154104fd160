"""Continuous speculative decoding: the rule over all values of a grid, and tokens of a toy source."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drafters.research.continuous import DiffusionHead, accepts, decode, keeps

GRID = np.linspace(-4, 4, 161)


def density(mean, scale):
    values = np.exp(-0.5 * ((GRID - mean) / scale) ** 2)
    return values / values.sum()


@given(shift=st.floats(-2, 2), wide=st.floats(0.4, 2.5))
def test_accepting_and_the_rest_make_the_target(shift, wide):
    """Enumerated: q · accepts + rejected · (p · keeps, normalised) is p at every value."""
    p, q = density(0, 1), density(shift, wide)
    accepted = q * [accepts(math.log(a), math.log(b)) for a, b in zip(p, q, strict=True)]
    rest = p * [keeps(math.log(a), math.log(b)) for a, b in zip(p, q, strict=True)]
    rejected = 1 - accepted.sum()
    out = accepted + (rejected * rest / rest.sum() if rest.sum() > 0 else 0)
    assert np.abs(out - p).max() < 1e-9
    assert rejected == pytest.approx(np.abs(p - q).sum() / 2, abs=1e-9)


def head(bias, scales=(0.8, 0.5, 0.3)):
    """Steps towards a mean that the last token of the text moves."""
    return DiffusionHead(lambda x, text, t: 0.5 * x + bias + (0.4 * math.sin(text[-1]) if text else 0.0), scales)


def test_a_way_has_the_density_of_its_steps():
    one = DiffusionHead(lambda x, text, t: 2 * x + t, (1.0, 0.5))
    expected = math.log(1 / math.sqrt(math.tau)) - 0.5 * (3 - 2) ** 2
    expected += math.log(2 / math.sqrt(math.tau)) - 0.5 * ((7.5 - 7) / 0.5) ** 2
    assert one.log_density((1.0, 3.0, 7.5), ()) == pytest.approx(expected)


def drawn(make, count):
    random = np.random.default_rng(5)
    return np.array([make(random) for _ in range(count)])


def alike(some, others):
    """The largest distance of two samples' cumulative shares, in units of what chance gives (Kolmogorov-Smirnov)."""
    some, others = np.sort(some), np.sort(others)
    every = np.concatenate((some, others))
    gap = np.abs(
        np.searchsorted(some, every, "right") / len(some) - np.searchsorted(others, every, "right") / len(others)
    )
    return gap.max() / math.sqrt(1 / len(some) + 1 / len(others))


@pytest.mark.parametrize("bias", [0.05, 0.4])
def test_the_tokens_are_distributed_as_the_targets_own(bias):
    target, draft = head(0.0), head(bias)

    def plain(random):
        text = []
        for _ in range(3):
            text.append(target.draw(text, random)[-1])
        return text

    own = drawn(plain, 6000)
    spoken = drawn(lambda random: decode(target, draft, 3, 2, random)[0], 6000)
    guessed = drawn(lambda random: draft.draw((), random)[-1:], 6000)
    for token in range(3):
        assert alike(own[:, token], spoken[:, token]) < 1.8
    assert alike(own[:, 0] + own[:, 2], spoken[:, 0] + spoken[:, 2]) < 1.8  # and together
    if bias > 0.1:
        assert alike(own[:, 0], guessed[:, 0]) > 5  # what a rule that accepts all would give


def test_a_draft_like_the_target_is_accepted_always():
    random = np.random.default_rng(0)
    assert decode(head(0.1), head(0.1), 12, 3, random)[1] == 9  # of three blocks, a token of the target's behind each
    far = sum(decode(head(0.0), head(1.5), 12, 3, random)[1] for _ in range(20))
    assert far < 30
