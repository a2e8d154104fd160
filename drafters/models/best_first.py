"""Best-first growth of a tree from a draft model (DySpec, arXiv 2410.11744; EAGLE-2, arXiv 2406.16858).

One pool holds every node known so far with its path score, the product of calibrated conditional
probabilities. Each round runs one draft forward over the best nodes not yet expanded and adds their children;
at the end the best nodes of the pool are the tree. A helper may guess ahead for the draft model (`cascade`):
its guesses ride in the same forward, and where the draft model agrees with them their expansion is already
there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from drafters.base import RequestState, SourceDrafter
from drafters.calibration import Calibration
from drafters.options import GrowthOptions
from drafters.protocols import Growing
from drafters.sampling.choice import Sampling, best_choices
from drafters.tree import DraftTree

RANKS = 4  # ranks told apart by the calibration; later ones share the last cell
CONFIDENCE = (0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95)


def prior_cells() -> np.ndarray:
    """First estimates [rank, confidence class]: the draft model's own confidence, a little discounted."""
    middle = np.array([0.02, 0.1, 0.22, 0.4, 0.6, 0.78, 0.9, 0.98])
    return np.repeat(0.9 * middle[None, :], RANKS, axis=0)


@dataclass(frozen=True)
class Candidates:
    """A row's best children: ids [k] and the draft model's confidence in each [k], best first."""

    ids: np.ndarray
    confidence: np.ndarray


def candidates(logits: Tensor, sampling: Sampling, positions: Sequence[int], k: int) -> list[Candidates]:
    """Children of draft rows [n, V], ranked as the target's keyed choice would rank them if it had these
    logits.

    positions [n] are those of the children. Greedy: the largest logits, by their probability. Sampled: the largest
    log q + g with the target's own noise, so that a draft distribution equal to the target's is accepted always;
    their confidence is the softmax of the k scores.
    """
    k = min(k, logits.shape[-1])
    if sampling.greedy:
        best = torch.topk(torch.log_softmax(logits.to(torch.float32), -1), k, dim=-1)
        ids, scores = best.indices.cpu().numpy(), best.values.to(torch.float64).cpu().numpy()
        confidence = np.exp(scores)
    else:
        ids, scores = best_choices(logits, sampling, positions, k)
        weights = np.exp(scores - scores[:, :1])
        confidence = weights / weights.sum(-1, keepdims=True)
    return [Candidates(i[c > 0], c[c > 0]) for i, c in zip(ids, confidence, strict=True)]


@dataclass
class Pool:
    """Nodes known to a growing tree.

    session_node  a node's number in the draft session, -1 before its forward has run
    root          the session's node that is the root; -1 = the last committed token
    longest       depth below which nothing is added
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    session_node: list[int] = field(default_factory=list)
    root: int = -1
    longest: int = 1 << 30

    def on(self, node: int) -> int:
        """The session's node that `node` hangs below."""
        parent = self.parents[node]
        return self.session_node[parent] if parent >= 0 else self.root

    def path(self, node: int) -> list[int]:
        """Tokens from the root's child down to `node`."""
        tokens = []
        while node >= 0:
            tokens.append(self.tokens[node])
            node = self.parents[node]
        return tokens[::-1]


class BestFirst:
    """Grows trees below the last token of a draft session and remembers what has been run there.

    Of a node the best `ranks` children are remembered (`fusion` prunes by them), fewer are considered for the tree. It
    stops early where some token of the best open path is probably rejected (SpecDec++, arXiv 2405.19715; the paper
    trains a head for the chance of acceptance, here it is the calibrated path score).
    """

    def __init__(
        self,
        source: str,
        calibration: Calibration,
        options: GrowthOptions,
        helper: SourceDrafter | None = None,
        helper_budget: int = 8,
        ranks: int = 10,
    ) -> None:
        self._source = source
        self._cells = calibration.cells
        self._offset = calibration.block(f"{source}/model", prior_cells())
        self._options = options
        self._ranks = max(ranks, options.branching)
        self._helper = helper
        self._helper_budget = helper_budget
        self.reset()

    def reset(self) -> None:
        """Forget the session's tree (it was rolled back, committed or advanced)."""
        self.session_children: dict[tuple[int, int], int] = {}
        self.known: list[Candidates] = []

    def follow(self, tokens: Sequence[int], node: int = -1) -> list[int]:
        """The session's nodes that spell a prefix of `tokens`, below `node` (-1 = the last committed
        token)."""
        path: list[int] = []
        for token in tokens:
            follow = self.session_children.get((node, token))
            if follow is None:
                break
            node = follow
            path.append(node)
        return path

    def candidates(self, logits: Tensor, state: RequestState, positions: Sequence[int]) -> list[Candidates]:
        """`candidates` of the request, as many as are remembered."""
        return candidates(logits, state.sampling, positions, self._ranks)

    def build(
        self,
        session: Growing,
        root: Candidates,
        state: RequestState,
        budget: int,
        at: int = -1,
        depth: int | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> DraftTree:
        """A tree of at most `budget` nodes below the session's node `at`, whose children are `root`; `depth` shortens
        the longest path.

        The session keeps the nodes that were run, and a later build goes on from them. `interrupted` is asked
        between forwards. Nothing is guessed below a token that ends the output. No more than `budget` nodes are run: a
        self-speculating session has pages for no more.
        """
        options = self._options
        longest = min(options.depth, budget, options.depth if depth is None else depth)
        pool = Pool(root=at, longest=longest)
        self._add_children(pool, -1, root)
        run = 0
        for _ in range(options.forwards):
            open_nodes = [
                node
                for node in range(len(pool.tokens))
                if pool.session_node[node] < 0 and pool.depth[node] < longest and pool.tokens[node] not in state.stops
            ]
            open_nodes.sort(key=lambda node: -pool.scores[node])
            chosen = open_nodes[: min(options.width, budget - run)]
            if not chosen or interrupted():
                break
            run += len(chosen)
            self._expand(session, pool, chosen, state)
            if 1.0 - _best_open(pool) > options.stop:
                break
        tree = DraftTree.of(pool.tokens, pool.parents, pool.scores, self._source, pool.cells)
        return tree.trim(budget)

    def _expand(self, session: Growing, pool: Pool, chosen: list[int], state: RequestState) -> None:
        """One draft forward over the chosen pool nodes and the helper's guesses below them."""
        tokens: list[int] = []
        parents: list[int] = []
        depths: list[int] = []
        first = len(self.known)
        for node in chosen:
            at = first + len(tokens)
            tokens.append(pool.tokens[node])
            parents.append(pool.on(node))
            depths.append(pool.depth[node])
            if self._helper is not None:
                ahead = self._helper.grow(state, pool.path(node), self._helper_budget)
                tokens.extend(ahead.tokens.tolist())
                parents.extend(at + 1 + parent if parent >= 0 else at for parent in ahead.parents.tolist())
                depths.extend(pool.depth[node] + depth for depth in ahead.depths[1:].tolist())
        logits = session.extend(tokens, parents)
        # a node at depth d holds position next_position + d - 1; its children come one later
        positions = [state.next_position + depth for depth in depths]
        self.known.extend(self.candidates(logits, state, positions))
        for i, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
            self.session_children[(parent, token)] = first + i
        for node in chosen:
            self._settle(pool, node, self.session_children[(pool.on(node), pool.tokens[node])])

    def _settle(self, pool: Pool, node: int, session_node: int) -> None:
        """The node has been run: add its children."""
        pool.session_node[node] = session_node
        if pool.depth[node] < pool.longest:
            self._add_children(pool, node, self.known[session_node])

    def _add_children(self, pool: Pool, parent: int, children: Candidates) -> None:
        score = pool.scores[parent] if parent >= 0 else 1.0
        on = pool.session_node[parent] if parent >= 0 else pool.root
        classes = np.digitize(children.confidence, CONFIDENCE)
        ranked = list(zip(children.ids.tolist(), classes.tolist(), strict=True))[: self._options.branching]
        for rank, (token, confidence) in enumerate(ranked):
            cell = self._offset + min(rank, RANKS - 1) * (len(CONFIDENCE) + 1) + confidence
            value = score * self._cells[cell]
            if value < self._options.min_score:
                continue
            pool.tokens.append(token)
            pool.parents.append(parent)
            pool.scores.append(value)
            pool.cells.append(cell)
            pool.depth.append(pool.depth[parent] + 1 if parent >= 0 else 1)
            pool.session_node.append(-1)
            run = self.session_children.get((on, token))
            if run is not None:
                self._settle(pool, len(pool.tokens) - 1, run)


def _best_open(pool: Pool) -> float:
    """The path score of the best node that was not expanded."""
    scores = zip(pool.scores, pool.session_node, strict=True)
    return max((score for score, node in scores if node < 0), default=0.0)
