"""Typical acceptance: what is kept is typical, the longest path of it wins, and greedy answers stay as they are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from drafters.base import RequestState
from drafters.errors import DrafterError
from drafters.models.typical import typical
from drafters.options import GoodputOptions, TrainedOptions
from drafters.registry import build
from drafters.sampling.choice import Sampling
from drafters.tree import EMPTY, DraftTree
from drafters.verify import verify

WARM = Sampling(temperature=1.0, seed=3)


def verdicts(lab, tree, logits, sampling, epsilon=0.3):
    """By the rule, and by the keyed walk."""
    drafter = build(TrainedOptions(typical=epsilon), lab.resources(lab.Model(vocab_size=logits.shape[1])))
    assert drafter.lossy
    state = RequestState("r", [1, 2, 3], 3, sampling)
    keyed = verify(tree, lab.keyed(logits, sampling, (3 + tree.depths).tolist()).tolist())
    return drafter.verify(state, tree, logits, keyed), keyed


def test_a_token_is_typical_by_the_entropy():
    p = torch.tensor([[0.97, 0.01, 0.01, 0.01], [0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    for row, bound in zip(p, typical(p.log(), 0.3).exp().flatten(), strict=True):
        entropy = -sum(x * math.log(x) for x in row.tolist())
        assert float(bound) == pytest.approx(min(0.3, math.sqrt(0.3) * math.exp(-entropy)))
    kept = p.log() > typical(p.log(), 0.3)
    assert kept.tolist() == [[True, False, False, False], [True, True, True, False]]


def test_the_longest_typical_path_wins(lab):
    probable = torch.full((6, 4), 0.01, dtype=torch.float64)
    probable[:, :3] = 0.33
    tree = DraftTree.of([0, 1, 3, 2, 0], [-1, -1, 0, 1, 3])  # below 0 stands what is not typical
    found, _ = verdicts(lab, tree, probable.log(), WARM)
    assert found.path == (1, 3, 4)
    assert found.tokens[:3] == (1, 2, 0)
    assert found.tokens[3] == int(lab.keyed(probable.log()[5:], WARM, [6])[0])


@pytest.mark.parametrize("seed", range(6))
def test_greedily_it_is_the_keyed_walk(lab, seed):
    random = np.random.default_rng(seed)
    parents = [int(random.integers(-1, i)) if i else -1 for i in range(8)]
    tree = DraftTree.of(random.integers(0, 4, 8), parents)
    found, keyed = verdicts(lab, tree, torch.from_numpy(random.normal(size=(9, 4))), Sampling())
    assert found.tokens[: len(keyed.tokens)] == keyed.tokens  # of two equal nodes it takes the one with more below


def test_more_is_accepted_than_by_the_walk(lab):
    random = np.random.default_rng(0)
    lengths = [0, 0]
    for _ in range(30):
        tree = DraftTree.of(random.integers(0, 4, 8), [-1, 0, 1, 2, 3, 4, 5, 6])
        for i, found in enumerate(verdicts(lab, tree, torch.from_numpy(random.normal(size=(9, 4))), WARM, 0.1)):
            lengths[i] += len(found.path)
    assert lengths[0] > lengths[1]


def test_without_guesses_it_is_plain_sampling(lab):
    found, keyed = verdicts(lab, EMPTY, torch.zeros(1, 4, dtype=torch.float64), WARM)
    assert found == keyed


def test_its_option_says_that_it_is_lossy():
    assert TrainedOptions(typical=0.3).lossy
    assert not TrainedOptions().lossy
    assert "lossy" in TrainedOptions.describe()["typical"]
    with pytest.raises(DrafterError, match="inner cannot be"):
        GoodputOptions(inner=TrainedOptions(typical=0.3))
