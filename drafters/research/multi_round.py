"""Verification by rejection, for trees whose children were drawn from a known distribution q.

An alternative to the keyed walk: the *distribution* of the output is the target's, its tokens are not those
of plain decoding. Three rules, each exact only for children drawn as it assumes and not touched since:

rsd        children drawn from q without replacement (arXiv 2402.14160, recursive rejection sampling)
specinfer  children drawn from q with replacement, judged one after the other (arXiv 2305.09781, algorithm 2)
spectr     children drawn from q with replacement, k-sequential selection (arXiv 2310.15141, algorithm 3)

A tree that was pruned or fused since it was drawn is refused: its surviving children are no longer q's draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from drafters.base import RequestState
from drafters.errors import DrafterError
from drafters.models.best_first import BestFirst
from drafters.models.draft_model import ModelDrafter
from drafters.options import MultiRoundOptions
from drafters.protocols import DraftModel
from drafters.sampling.choice import perturb, warp
from drafters.sampling.noise import uniform
from drafters.tree import EMPTY, DraftTree
from drafters.verify import Verdict

# keys apart from those of the target's own noise, one for the draws and one for the verdicts
_DRAW_SALT = 0x51ED270B
_JUDGE_SALT = 0x2545F491


@dataclass(frozen=True)
class Selection:
    """How one row's children are judged, in order.

    accept    float64 [k], the chance that child i is accepted given that those before it were rejected
    residual  float64 [V], the distribution of the token when all are rejected (unused if that cannot happen)
    """

    accept: Tensor
    residual: Tensor


class Rule(Protocol):
    def __call__(self, p: Tensor, q: Tensor, children: Sequence[int]) -> Selection: ...


def rsd(p: Tensor, q: Tensor, children: Sequence[int]) -> Selection:
    """Children drawn from q [V] without replacement; p [V] is the target; float64."""
    accept = torch.zeros(len(children), dtype=torch.float64)
    for i, child in enumerate(children):
        accept[i] = _ratio(p[child], q[child])
        p = _normalised((p - q).clamp(min=0), p)
        q = q.clone()
        q[child] = 0
        q = _normalised(q, q)
    return Selection(accept, p)


def specinfer(p: Tensor, q: Tensor, children: Sequence[int]) -> Selection:
    """Children drawn from q [V] with replacement, verified one after the other."""
    accept = torch.zeros(len(children), dtype=torch.float64)
    for i, child in enumerate(children):
        accept[i] = _ratio(p[child], q[child])
        p = _normalised((p - q).clamp(min=0), p)
    return Selection(accept, p)


def spectr(p: Tensor, q: Tensor, children: Sequence[int]) -> Selection:
    """Children drawn from q [V] with replacement: each is accepted with min(1, p / (rho q)), rho the smallest
    factor for which the residual is a distribution."""
    count = len(children)
    rho = _smallest_rho(p, q, count)
    overlap = torch.minimum(q, p / rho)
    beta = float(overlap.sum())
    accept = torch.tensor([_ratio(p[child], rho * q[child]) for child in children], dtype=torch.float64)
    share = (1 - (1 - beta) ** count) / beta if beta > 0 else float(count)
    return Selection(accept, _normalised((p - share * overlap).clamp(min=0), p))


RULES: dict[str, Rule] = {"rsd": rsd, "specinfer": specinfer, "spectr": spectr}
WITH_REPLACEMENT = {"specinfer", "spectr"}


def judge(tree: DraftTree, q: Tensor, p: Tensor, rule: Rule, seed: int, position: int) -> Verdict:
    """Walk the tree by a rejection rule.

    q float64 [n + 1, V] is the distribution that the children of the root (row 0) and of node i (row i + 1) were drawn
    from, in the order of the nodes; p float64 [n + 1, V] is the warped target distribution after each row; `position`
    is that of the root's children. Randomness is keyed by (seed, position), apart from the noise of the draws.
    """
    path: list[int] = []
    tokens: list[int] = []
    row = 0
    while True:
        children = [node for node in range(len(tree)) if tree.parents[node] == row - 1]
        at = position + len(path)
        selection = rule(p[row], q[row], [int(tree.tokens[node]) for node in children])
        draws = _uniforms(seed, at, len(children) + 1)
        accepted = next((i for i in range(len(children)) if draws[i] < selection.accept[i]), None)
        if accepted is None:
            tokens.append(_inverse(selection.residual, float(draws[-1])))
            return Verdict(tuple(path), tuple(tokens))
        path.append(children[accepted])
        tokens.append(int(tree.tokens[children[accepted]]))
        row = children[accepted] + 1


class MultiRound(ModelDrafter):
    """The drafter `multi_round`: draws its trees from the draft model and judges them itself.

    The first child of every row is expanded, the others are leaves.
    """

    name = "multi_round"
    judges = True

    def __init__(self, model: DraftModel, builder: BestFirst, options: MultiRoundOptions) -> None:
        super().__init__(model, builder)
        self._rule = RULES[options.rule]
        self._replace = options.rule in WITH_REPLACEMENT
        self._depth = options.depth
        self._branching = options.branching
        self._drawn = EMPTY  # the last proposal …
        self._q = torch.empty(0)  # … and what it was drawn from

    def propose(self, state: RequestState, budget: int) -> DraftTree:
        session = self._open_session()
        logits = self._root_logits(session, state)
        q = torch.zeros(budget + 1, logits.shape[-1], dtype=torch.float64)
        tokens: list[int] = []
        parents: list[int] = []
        expanded = -1
        for depth in range(self._depth):
            # the number of draws is fixed before drawing: dropping a draw afterwards would bias the rule
            count = min(self._branching, budget - len(tokens))
            if count < 1:
                break
            sampling = state.sampling
            log_q = warp(logits, sampling.temperature, sampling.top_k, sampling.top_p)
            q[expanded + 1] = log_q[0].exp().cpu()
            drawn = self._draw(log_q, sampling.seed, state.next_position + depth, count)
            parents += [expanded] * len(drawn)
            expanded = len(tokens)
            tokens += drawn
            if depth + 1 < self._depth and len(tokens) < budget:
                logits = session.extend([drawn[0]], [depth - 1])
                self._builder.session_children[(depth - 1, drawn[0])] = depth
        self._drawn, self._q = DraftTree.of(tokens, parents, source=self.name), q
        return self._drawn

    def verify(self, state: RequestState, tree: DraftTree, logits: Tensor, keyed: Verdict) -> Verdict:
        """The verdict by the rejection rule; DrafterError if `tree` is neither the last proposal nor empty."""
        if len(tree) and tree is not self._drawn:
            raise DrafterError("multi_round judges every child as it was drawn: this tree was pruned or fused since")
        sampling = state.sampling
        p = warp(logits, sampling.temperature, sampling.top_k, sampling.top_p).exp().cpu()
        q = self._q if len(tree) else torch.zeros_like(p)  # nothing was drawn from it
        return judge(tree, q, p, self._rule, sampling.seed, state.next_position)

    def _draw(self, log_q: Tensor, seed: int, position: int, count: int) -> list[int]:
        if self._replace:
            draws = _uniforms(seed ^ _DRAW_SALT, position, count)
            q = log_q[0].exp().cpu()
            return [_inverse(q, float(draw)) for draw in draws]
        # the largest of log q + Gumbel noise, in order, are draws without replacement
        seeds = torch.tensor([seed ^ _DRAW_SALT], device=log_q.device)
        scores = perturb(log_q, seeds, torch.tensor([position], device=log_q.device))[0]
        best = torch.topk(scores, min(count, len(scores)))
        return best.indices[torch.isfinite(best.values)].tolist()


def _uniforms(seed: int, position: int, count: int) -> Tensor:
    key = torch.tensor([seed ^ _JUDGE_SALT]), torch.tensor([position])
    return uniform(key[0], key[1], torch.arange(count))


def _inverse(distribution: Tensor, draw: float) -> int:
    """The token at `draw` of the cumulative distribution; never one of probability 0."""
    support = distribution.nonzero().flatten()
    total = torch.cumsum(distribution[support], 0)
    index = int(torch.searchsorted(total, draw * total[-1], right=True))
    return int(support[min(index, len(support) - 1)])


def _ratio(p: Tensor, q: Tensor) -> float:
    return min(1.0, float(p / q)) if q > 0 else 1.0


def _normalised(weights: Tensor, otherwise: Tensor) -> Tensor:
    """weights / their sum; `otherwise` where they sum to nothing (a case of probability 0)."""
    total = weights.sum()
    return weights / total if total > 0 else otherwise


def _smallest_rho(p: Tensor, q: Tensor, count: int) -> float:
    """The root in [1, count] of 1 - (1 - beta)^count = rho beta, beta = sum min(q, p / rho) (bisection)."""
    target, draft = p.numpy(), q.numpy()
    low, high = 1.0, float(count)
    for _ in range(60):
        rho = (low + high) / 2
        beta = float(np.minimum(draft, target / rho).sum())
        if 1 - (1 - beta) ** count > rho * beta:
            low = rho
        else:
            high = rho
    return high
