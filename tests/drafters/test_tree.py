"""Trees: depths, masks, fusing, trimming, refusals, and the walk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drafters.calibration import Calibration
from drafters.errors import DrafterError
from drafters.stats import DraftingStats, token_sources
from drafters.tree import EMPTY, DraftTree, fuse
from drafters.verify import Verdict, verify


@st.composite
def trees(draw, vocab: int = 4, most: int = 12) -> DraftTree:
    count = draw(st.integers(0, most))
    parents = [draw(st.integers(-1, i - 1)) for i in range(count)]
    tokens = [draw(st.integers(0, vocab - 1)) for _ in range(count)]
    scores = [draw(st.floats(0.01, 1.0)) for _ in range(count)]
    return DraftTree.of(tokens, parents, scores, "x")


def spelled(tree: DraftTree) -> set[tuple[int, ...]]:
    return {tuple(int(tree.tokens[i]) for i in tree.path_to(node)) for node in range(len(tree))}


@given(trees())
def test_mask_and_depths(tree):
    mask, depths = tree.ancestor_mask, tree.depths
    assert mask.shape == (len(tree) + 1, len(tree) + 1)
    assert (mask.sum(axis=1) == depths + 1).all()
    for node in range(len(tree)):
        rows = {0, *(i + 1 for i in tree.path_to(node))}
        assert set(np.flatnonzero(mask[node + 1])) == rows


@given(trees(), trees())
def test_fusing_keeps_every_path_once(one, other):
    fused = fuse([one, other])
    assert spelled(fused) == spelled(one) | spelled(other)
    assert len(fused) == len(spelled(fused))
    assert spelled(fuse([fused, EMPTY])) == spelled(fused)


@given(trees(), trees())
def test_a_fused_node_is_that_of_the_better_score(one, other):
    sides = {"one": one, "other": other}
    named = [replace(tree, sources=(name,) * len(tree), features=np.arange(len(tree))) for name, tree in sides.items()]
    fused = fuse(named)
    for node, (source, feature) in enumerate(zip(fused.sources, fused.features.tolist(), strict=True)):
        path = [int(fused.tokens[i]) for i in fused.path_to(node)]
        same = [
            (tree.scores[i], name)
            for name, tree in sides.items()
            for i in range(len(tree))
            if [int(tree.tokens[j]) for j in tree.path_to(i)] == path
        ]
        assert (fused.scores[node], sides[source].scores[feature]) == (max(same)[0], max(same)[0])
        assert [int(sides[source].tokens[j]) for j in sides[source].path_to(feature)] == path


def test_a_selection_without_an_ancestor_is_refused():
    with pytest.raises(DrafterError, match="precede"):
        DraftTree.of([1, 2], [-1, 0]).select([1]).validate()


@given(trees(), st.integers(0, 12))
def test_trimming_keeps_the_best_closed_under_ancestors(tree, budget):
    trimmed = tree.trim(budget)
    assert len(trimmed) == min(budget, len(tree))
    assert spelled(trimmed) <= spelled(tree)
    trimmed.validate()
    capped = [min(tree.scores[tree.path_to(node)]) for node in range(len(tree))]
    if len(trimmed):
        kept = [min(trimmed.scores[trimmed.path_to(node)]) for node in range(len(trimmed))]
        np.testing.assert_allclose(sorted(kept, reverse=True), sorted(capped, reverse=True)[: len(kept)])


@given(trees(vocab=3), st.lists(st.integers(0, 2), min_size=13, max_size=13))
def test_the_walk_follows_the_choices(tree, choices):
    """By its definition: the emitted tokens are the choices read along the path, and the walk stops only where no
    child agrees."""
    verdict = verify(tree, choices)
    row = 0
    for node, token in zip(verdict.path, verdict.tokens, strict=False):
        assert tree.parents[node] == row - 1
        assert token == choices[row] == tree.tokens[node]
        row = node + 1
    assert verdict.tokens[-1] == choices[row]
    assert len(verdict.tokens) == len(verdict.path) + 1
    children = [int(tree.tokens[node]) for node in range(len(tree)) if tree.parents[node] == row - 1]
    assert verdict.tokens[-1] not in children


@given(trees(), st.frozensets(st.integers(0, 3)))
def test_nothing_is_kept_below_an_end(tree, stops):
    cut = tree.ended_by(stops)
    expected = {path for path in spelled(tree) if not stops & set(path[:-1])}
    assert spelled(cut) == expected


@pytest.mark.parametrize(
    ("tokens", "parents", "word"),
    [([1], [0], "precede"), ([1, 2], [-1, 1], "precede"), ([1], [-2], "precede"), ([-1], [-1], "vocabulary")],
)
def test_bad_trees_are_refused(tokens, parents, word):
    with pytest.raises(DrafterError, match=word):
        DraftTree.of(tokens, parents).validate()


def test_lengths_and_vocabulary_are_checked():
    with pytest.raises(DrafterError, match="parents"):
        DraftTree.of([1, 2], [-1]).validate()
    with pytest.raises(DrafterError, match="vocabulary"):
        DraftTree.of([5], [-1]).validate(vocab_size=5)


def test_statistics_count_sources_and_cuts():
    tree = DraftTree.of([1, 2, 3], [-1, 0, -1], source=["suffix", "rag", "suffix"])
    stats = DraftingStats()
    stats.count(tree, Verdict((0, 1), (1, 2, 9)))
    stats.count(tree, Verdict((0, 1), (1,)))  # a stop cut the path
    assert (stats.drafted, stats.accepted, stats.emitted, stats.steps) == (6, 3, 4, 2)
    assert stats.by_source["suffix"].accepted == 2
    assert stats.accepted_length == 2.0
    assert token_sources(tree, Verdict((0, 1), (1, 2, 9))) == ["suffix", "rag", "target"]
    assert token_sources(tree, Verdict((0, 1), (1,))) == ["suffix"]
    total = DraftingStats()
    total.add(stats)
    total.add(stats)
    assert total.as_dict()["by_source"]["rag"] == {"drafted": 4, "accepted": 2}


def test_calibration_learns_conditional_acceptance():
    calibration = Calibration()
    offset = calibration.block("x", np.array([0.5, 0.5]))
    tree = DraftTree.of([1, 2], [-1, 0], features=[offset, offset + 1])
    for _ in range(200):
        calibration.observe(tree, Verdict((0,), (1, 7)))
        calibration.observe(tree, Verdict((), (7,)))  # the second node was not reached: it teaches nothing
    assert calibration.cells[offset] == pytest.approx(0.5, abs=0.01)
    assert calibration.cells[offset + 1] < 0.02
    with pytest.raises(DrafterError, match="cells"):
        calibration.block("x", np.array([0.5]))
