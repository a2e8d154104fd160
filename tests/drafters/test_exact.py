"""The distribution of the output, by exact enumeration of every outcome; and rules known to be biased,
caught."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np
import pytest
import torch

from drafters.research.multi_round import RULES, WITH_REPLACEMENT, judge
from drafters.research.target_mix import mix
from drafters.sampling.choice import warp
from drafters.tree import DraftTree
from drafters.verify import verify

VOCAB = 4
LENGTH = 3
Distribution = Callable[[tuple[int, ...]], torch.Tensor]
Outcome = tuple[float, tuple[int, ...]]
Step = Callable[[tuple[int, ...]], Iterable[Outcome]]

EXACT = 1e-12
BIASED = 0.01


def random_model(seed: int, temperature: float = 1.0, top_p: float = 1.0) -> Distribution:
    """Warped next-token distributions float64 [V], one a prefix."""

    @cache
    def p(prefix: tuple[int, ...]) -> torch.Tensor:
        return warp(raw_logits(seed, prefix)[None], temperature, 0, top_p)[0].exp()

    return p


@cache
def raw_logits(seed: int, prefix: tuple[int, ...]) -> torch.Tensor:
    generator = np.random.default_rng((seed, len(prefix), *prefix))
    return torch.from_numpy(generator.normal(size=VOCAB) * 1.5)


def sequences(p: Distribution) -> dict[tuple[int, ...], float]:
    """The target's own distribution of LENGTH tokens."""
    found = {(): 1.0}
    for _ in range(LENGTH):
        found = {
            (*prefix, token): weight * float(p(prefix)[token])
            for prefix, weight in found.items()
            for token in range(VOCAB)
        }
    return found


def produced(step: Step) -> dict[tuple[int, ...], float]:
    """The distribution of the first LENGTH tokens when blocks of `step` follow one another."""
    done: dict[tuple[int, ...], float] = defaultdict(float)
    pending: dict[tuple[int, ...], float] = {(): 1.0}
    while pending:
        prefix, weight = pending.popitem()
        for chance, tokens in step(prefix):
            if chance == 0:
                continue
            longer = (*prefix, *tokens)
            if len(longer) >= LENGTH:
                done[longer[:LENGTH]] += weight * chance
            else:
                pending[longer] = pending.get(longer, 0.0) + weight * chance
    return done


def variation(a: dict, b: dict) -> float:
    return 0.5 * sum(abs(a.get(key, 0.0) - b.get(key, 0.0)) for key in {*a, *b})


def rows_of(tree: DraftTree, prefix: tuple[int, ...], p: Distribution) -> list[torch.Tensor]:
    rows = [p(prefix)]
    for node in range(len(tree)):
        rows.append(p((*prefix, *(int(tree.tokens[i]) for i in tree.path_to(node)))))
    return rows


def keyed_outcomes(tree: DraftTree, rows: list[torch.Tensor]) -> Iterable[Outcome]:
    weights = [row.tolist() for row in rows]
    for choices in itertools.product(range(VOCAB), repeat=len(rows)):
        chance = math.prod(row[y] for row, y in zip(weights, choices, strict=True))
        if chance:
            yield chance, verify(tree, choices).tokens


def keyed_step(propose: Callable[[tuple[int, ...]], DraftTree], p: Distribution) -> Step:
    """Every combination of the rows' choices. One row is read at each depth, so drawing the rows
    independently is the same as drawing them from noise shared within a position."""

    def step(prefix):
        tree = propose(prefix)
        rows = rows_of(tree, prefix, p)
        yield from keyed_outcomes(tree, rows)

    return step


def any_tree(prefix: tuple[int, ...]) -> DraftTree:
    generator = np.random.default_rng((9, len(prefix), *prefix))
    parents = [int(generator.integers(-1, i)) if i else -1 for i in range(3)]
    return DraftTree.of(generator.integers(0, VOCAB, 3), parents)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.3, 0.9), (1.0, 0.8)])
@pytest.mark.parametrize("seed", range(3))
def test_keyed_walk_is_exact(seed, temperature, top_p):
    p = random_model(seed, temperature, top_p)
    assert variation(produced(keyed_step(any_tree, p)), sequences(p)) < EXACT


def draws(q: torch.Tensor, count: int, replace: bool) -> Iterable[tuple[float, tuple[int, ...]]]:
    """Every way to draw `count` children in order, with its probability."""
    for drawn in itertools.product(range(len(q)), repeat=count):
        if not replace and len(set(drawn)) < count:
            continue
        chance, left = 1.0, 1.0
        for token in drawn:
            chance *= float(q[token]) / left
            left -= 0.0 if replace else float(q[token])
        yield chance, drawn


def judged(p: torch.Tensor, q: torch.Tensor, drawn: Sequence[int], rule) -> Iterable[tuple[float, int, int]]:
    """(chance, index of the accepted child or -1, token)."""
    selection = rule(p, q, drawn)
    left = 1.0
    for i, accept in enumerate(selection.accept.tolist()):
        yield left * accept, i, drawn[i]
        left *= 1 - accept
    for token in range(len(p)):
        yield left * float(selection.residual[token]), -1, token


def multi_round_step(p: Distribution, q: Distribution, rule, replace: bool, count: int = 2) -> Step:
    """Two levels: `count` draws at the root, `count` below the first of them; then the bonus token."""

    @cache
    def level(prefix):
        """What one row's draws and verdict lead to: chance by (whether the first child was accepted, …)."""
        found: dict[tuple[str, int], float] = defaultdict(float)
        for drawn_chance, drawn in draws(q(prefix), count, replace):
            for chance, accepted, token in judged(p(prefix), q(prefix), drawn, rule):
                kind = "rejected" if accepted < 0 else "first" if accepted == 0 else "later"
                found[kind, token] += drawn_chance * chance
        return found

    def step(prefix):
        for (kind, token), chance in level(prefix).items():
            longer = (*prefix, token)
            if kind == "rejected":
                yield chance, (token,)
            elif kind == "later":
                for bonus, weight in enumerate(p(longer).tolist()):
                    yield chance * weight, (token, bonus)
            else:
                for (_, last), inner in level(longer).items():
                    yield chance * inner, (token, last)

    return step


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", list(RULES))
def test_rejection_rules_are_exact(name, seed, count):
    p, q = random_model(seed), random_model(seed + 100)
    step = multi_round_step(p, q, RULES[name], name in WITH_REPLACEMENT, count)
    assert variation(produced(step), sequences(p)) < EXACT


def test_judge_follows_its_rule():
    """The compiled walk agrees with the enumeration: frequencies over many seeds, and exactly so for q =
    p."""
    p, q = random_model(1), random_model(101)
    rows = torch.stack([p(()), p((2,)), p((0,))])
    tree, drawn_from = DraftTree.of([2, 0], [-1, -1]), torch.stack([q(()), q(()), q(())])
    selection = RULES["rsd"](p(()), q(()), [2, 0])
    verdicts = [judge(tree, drawn_from, rows, RULES["rsd"], seed, 7) for seed in range(1500)]
    first = np.mean([verdict.path == (0,) for verdict in verdicts])
    assert first == pytest.approx(float(selection.accept[0]), abs=0.05)
    sure, drawn_from = DraftTree.chain([2]), torch.stack([p(()), p(())])
    assert all(judge(sure, drawn_from, rows, RULES["rsd"], seed, 7).path == (0,) for seed in range(50))


# ---- what must be caught
# -------------------------------------------------------------------------------------------


def test_pruning_after_the_draw_is_caught():
    """Two children drawn, the likelier kept, and verified as though it alone had been drawn."""
    p, q = random_model(0), random_model(100)

    def step(prefix):
        for chance, drawn in draws(q(prefix), 2, replace=False):
            kept = max(drawn, key=lambda token: float(q(prefix)[token]))
            for inner, _, token in judged(p(prefix), q(prefix), [kept], RULES["rsd"]):
                yield chance * inner, (token,)

    assert variation(produced(step), sequences(p)) > BIASED


def test_rest_rule_is_caught():
    """REST samples anew for every candidate path, keeps the longest match and takes the argmax as bonus."""
    p = random_model(0)

    def step(prefix):
        children = (0, 1)
        for samples in itertools.product(range(VOCAB), repeat=len(children)):
            chance = float(np.prod([float(p(prefix)[y]) for y in samples]))
            matched = [child for child, y in zip(children, samples, strict=True) if child == y]
            if matched:
                yield chance, (matched[0], int(p((*prefix, matched[0])).argmax()))
            else:
                yield chance, (int(p(prefix).argmax()),)

    assert variation(produced(step), sequences(p)) > BIASED


def mixed_model(seed: int, eta: float) -> Distribution:
    @cache
    def p_hat(prefix):
        return torch.softmax(mix(raw_logits(seed, prefix)[None], raw_logits(seed + 100, prefix)[None], 1.0, eta)[0], -1)

    return p_hat


def single_draft_step(accept_towards: Distribution, q: Distribution, residual) -> Step:
    """One drafted token accepted with min(1, target / q), else `residual`; no bonus."""

    def step(prefix):
        target, draft = accept_towards(prefix), q(prefix)
        rejected = residual(prefix)
        for drafted in range(VOCAB):
            accept = min(1.0, float(target[drafted] / draft[drafted]))
            yield float(draft[drafted]) * accept, (drafted,)
            for token in range(VOCAB):
                yield float(draft[drafted]) * (1 - accept) * float(rejected[token]), (token,)

    return step


def normalised(weights: torch.Tensor) -> torch.Tensor:
    return weights / weights.sum() if weights.sum() > 0 else weights


def test_rapid_residual_is_caught_and_ours_is_exact():
    """RAPID's residual samples neither p nor p_hat; norm(max(p_hat - q, 0)) and the keyed walk sample
    p_hat."""
    p, q, p_hat = random_model(0), random_model(100), mixed_model(0, eta=5.0)
    assert variation(sequences(p), sequences(p_hat)) > BIASED

    def paper(prefix):
        both = torch.maximum(p(prefix) - p_hat(prefix), p(prefix) - q(prefix)).clamp(min=0)
        return normalised(both)

    def right(prefix):
        return normalised((p_hat(prefix) - q(prefix)).clamp(min=0))

    biased = produced(single_draft_step(p_hat, q, paper))
    assert variation(biased, sequences(p_hat)) > BIASED
    assert variation(biased, sequences(p)) > BIASED
    assert variation(produced(single_draft_step(p_hat, q, right)), sequences(p_hat)) < EXACT
    assert variation(produced(keyed_step(any_tree, p_hat)), sequences(p_hat)) < EXACT


def test_bonus_token_from_the_target_is_caught():
    """A mixed target whose bonus token comes from p: the output depends on where the blocks end."""
    p, p_hat = random_model(0), mixed_model(0, eta=5.0)

    def step(prefix):
        for token in range(VOCAB):
            for bonus in range(VOCAB):
                chance = float(p_hat(prefix)[token]) * float(p((*prefix, token))[bonus])
                yield chance, (token, bonus)

    assert variation(produced(step), sequences(p_hat)) > BIASED


def test_unwarped_bonus_token_is_caught():
    """Temperature applied to drafted positions, forgotten for the token after them."""
    warped, raw = random_model(0, temperature=0.5), random_model(0)

    def step(prefix):
        tree = any_tree(prefix)
        leaves = set(range(len(tree))) - set(tree.parents.tolist())
        rows = rows_of(tree, prefix, warped)
        for leaf in leaves:
            path = tuple(int(tree.tokens[i]) for i in tree.path_to(leaf))
            rows[leaf + 1] = raw((*prefix, *path))
        yield from keyed_outcomes(tree, rows)

    assert variation(produced(step), sequences(warped)) > BIASED


def test_mix_is_the_declared_distribution():
    target, draft = raw_logits(3, ()), raw_logits(4, ())
    p, q = torch.softmax(target, -1), torch.softmax(draft, -1)
    raw = torch.softmax(torch.log(p) + 7.0 * (q - p), -1)
    kept = torch.where(raw < 0.1 * raw.max(), p, raw)
    assert torch.allclose(torch.softmax(mix(target[None], draft[None], 1.0, 7.0)[0], -1), kept / kept.sum())
    assert torch.allclose(mix(target[None], draft[None], 1.0, 0.0).softmax(-1)[0], p)
