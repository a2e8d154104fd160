"""Tiny models whose distributions are known exactly, and the engine's loop in a dozen lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest
import torch

from drafters.base import RequestState, TopSuccessors
from drafters.heads.folder import HEADS
from drafters.heads.head import Head
from drafters.resources import Resources
from drafters.sampling.choice import Sampling, choose
from drafters.tracked import TrackedDrafter
from drafters.tree import DraftTree
from drafters.verify import verify
from drafters.warm_up import warm_up


@pytest.fixture(autouse=True, scope="session")
def compiled():
    """What Numba compiles on first use, so that no test waits for it beyond hypothesis' deadline."""
    warm_up()


@dataclass
class TableModel:
    """Next-token logits as a random function of the last `order` tokens; float64, deterministic.

    `copying` adds weight to the token that followed the same last two tokens before, so that drafts from the
    text are often right. `rows` counts the rows run, to hold drafters to their promised cost.
    """

    vocab_size: int
    seed: int = 0
    order: int = 2
    copying: float = 0.0
    sharpness: float = 2.0
    rows: int = 0
    forwards: int = 0
    concurrent: bool = True
    _cache: dict = field(default_factory=dict)

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        key = tuple(tokens[-self.order :])
        if key not in self._cache:
            generator = np.random.default_rng((self.seed, *key))
            self._cache[key] = generator.normal(size=self.vocab_size) * self.sharpness
        out = self._cache[key].copy()
        if self.copying:
            for i in range(len(tokens) - 2, 1, -1):
                if tuple(tokens[i - 2 : i]) == tuple(tokens[-2:]):
                    out[tokens[i]] += self.copying
                    break
        return torch.from_numpy(out)

    def open(self, token_ids: Sequence[int]) -> TableSession:
        return TableSession(self, list(token_ids))

    def attach(self, request_id: str) -> TableSkipSession:
        return TableSkipSession(self, self.requests[request_id])

    requests: dict[str, RequestState] = field(default_factory=dict)
    num_layers: int = 6


class TableSession:
    """A draft session by brute force: every row's logits from its whole path."""

    def __init__(self, model: TableModel, tokens: list[int]) -> None:
        self._model = model
        self.tokens = tokens
        self._paths: list[list[int]] = []
        self.closed = False
        self.ready = True
        model.rows += len(tokens)
        self.trace: list[tuple[str, int]] = []

    @property
    def length(self) -> int:
        return len(self.tokens)

    def advance(self, token_ids: Sequence[int]) -> torch.Tensor:
        assert len(token_ids)
        assert not self.closed
        self._paths = []
        rows = []
        for token in token_ids:
            self.tokens.append(int(token))
            rows.append(self._model.logits(self.tokens))
        self._model.rows += len(rows)
        self._model.forwards += 1
        return torch.stack(rows)

    def extend(self, tokens: Sequence[int], parents: Sequence[int]) -> torch.Tensor:
        assert not self.closed
        rows = []
        for token, parent in zip(tokens, parents, strict=True):
            before = self._paths[parent] if parent >= 0 else []
            self._paths.append([*before, int(token)])
            rows.append(self._model.logits(self.tokens + self._paths[-1]))
        self._model.rows += len(rows)
        self._model.forwards += 1
        return torch.stack(rows)

    def commit(self, path: Sequence[int]) -> None:
        if path:
            spelled = self._paths[path[-1]]
            assert len(spelled) == len(path), "a path starts at a child of the last committed token"
            self.tokens.extend(spelled)
        self._paths = []

    def rollback(self) -> None:
        self._paths = []

    def close(self) -> None:
        self.closed = True


class TableSkipSession:
    """The target with layers skipped: here the same table, blurred by how many are skipped."""

    def __init__(self, model: TableModel, state: RequestState) -> None:
        self._model, self._state = model, state
        self._paths: list[list[int]] = []

    def extend(self, tokens: Sequence[int], parents: Sequence[int], skipped: frozenset[int]) -> torch.Tensor:
        rows = []
        for token, parent in zip(tokens, parents, strict=True):
            if parent < 0:
                assert token == self._state.tokens[-1], "node 0 is the root"
                self._paths.append(list(self._state.tokens))
            else:
                self._paths.append([*self._paths[parent], int(token)])
            rows.append(self._model.logits(self._paths[-1]) / (1 + 0.2 * len(skipped)))
        self._model.rows += len(rows)
        return torch.stack(rows)

    def shallow(self, tokens: Sequence[int], parents: Sequence[int], layers: int) -> torch.Tensor:
        """What `TinyTarget` has of the nodes in one layer."""
        self.extend(tokens, parents, frozenset())
        target = tiny_target(self._model.vocab_size)
        return torch.stack([target._sum(tuple(path)).roll(layers) for path in self._paths[-len(tokens) :]])

    def rollback(self) -> None:
        self._paths = []

    def close(self) -> None:
        pass


def plain(model: TableModel, prompt: Sequence[int], sampling: Sampling, count: int) -> list[int]:
    """Decoding one token a step."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(keyed(model.logits(tokens)[None], sampling, [len(tokens)])[0]))
    return tokens[len(prompt) :]


def keyed(logits: torch.Tensor, sampling: Sampling, positions: Sequence[int]) -> torch.Tensor:
    return choose(
        logits,
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        torch.full((len(logits),), sampling.seed, dtype=torch.int64),
        torch.as_tensor(positions, dtype=torch.int64),
    )


def tree_logits(model: TableModel, tokens: Sequence[int], tree: DraftTree) -> torch.Tensor:
    """The target's logits [n + 1, V] after each row's path."""
    rows = [model.logits(tokens)]
    for node in range(len(tree)):
        path = [int(tree.tokens[i]) for i in tree.path_to(node)]
        rows.append(model.logits([*tokens, *path]))
    return torch.stack(rows)


def speculate(
    drafter: TrackedDrafter, model: TableModel, state: RequestState, count: int, budget: int = 16
) -> list[int]:
    """The engine's loop: propose, forward, verify, observe."""
    prompt = len(state.tokens)
    model.requests[state.request_id] = state
    target, read = tiny_target(model.vocab_size), 0
    drafter.start(state)
    while len(state.tokens) < prompt + count:
        if drafter.layers and read < len(state.tokens) - 1:
            drafter.read(state, read, target.states(state.tokens[:-1], drafter.layers)[read:])
            read = len(state.tokens) - 1
        tree = drafter.propose(state, budget)
        appended = drafter.append(state, tree)
        assert len(tree) + len(appended) <= budget
        logits = drafter.adjust(state, tree, tree_logits(model, state.tokens, tree))
        positions = len(state.tokens) + tree.depths
        choices = keyed(logits, state.sampling, positions.tolist())
        verdict = verify(tree, choices.tolist())
        if len(appended):
            verdict = drafter.verify(
                state, tree, logits, verdict, appended_states(target, state.tokens, tree, appended)
            )
        top = top_successors(logits[verdict.rows], drafter.needs_topk) if drafter.needs_topk else None
        state.tokens.extend(verdict.tokens)
        drafter.observe(state, tree, verdict, top)
    drafter.finish(state)
    return state.tokens[prompt : prompt + count]


def appended_states(target: TinyTarget, tokens: Sequence[int], tree: DraftTree, appended: DraftTree) -> torch.Tensor:
    """The last layer's states [rows, 1, 16] of the root, of a tree and of what is appended to it."""
    grown = DraftTree.of([*tree.tokens, *appended.tokens], [*tree.parents, *appended.parents])
    paths = [[*tokens, *(int(grown.tokens[i]) for i in grown.path_to(node))] for node in range(-1, len(grown))]
    return torch.stack([target._sum(tuple(path)).roll(-1)[None] for path in paths])


def top_successors(logits: torch.Tensor, k: int) -> TopSuccessors:
    best = torch.topk(torch.log_softmax(logits, -1), min(k, logits.shape[-1]), dim=-1)
    return TopSuccessors(best.indices.numpy(), best.values.to(torch.float32).numpy())


class TinyTarget:
    """What a target of 4 layers lends a trained drafter, of random numbers; its states are sums of embeddings."""

    name, hidden_size, num_layers = "tiny", 16, 4

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        self.vocab_size = vocab_size
        self._sums: dict[tuple[int, ...], torch.Tensor] = {}
        self._in, self._out = (torch.randn(vocab_size, 16, generator=random) for _ in range(2))
        self.layer_config = {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5,
            "vocab_size": vocab_size,
        }
        self.prompts = torch.empty(0, 16)  # embeddings of the ids behind the vocabulary

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self._in[ids]

    def output_rows(self, ids: torch.Tensor) -> torch.Tensor:
        return self._out[ids]

    def states(self, tokens: Sequence[int], layers: Sequence[int]) -> torch.Tensor:
        """[n, layers, 16] after each token."""
        sums = torch.stack([self._sum(tuple(tokens[: i + 1])) for i in range(len(tokens))])
        return torch.stack([sums.roll(layer, 1) for layer in layers], 1)

    def _sum(self, tokens: tuple[int, ...]) -> torch.Tensor:
        if tokens not in self._sums:
            before, last = self._sum(tokens[:-1]) if len(tokens) > 1 else torch.zeros(16), tokens[-1]
            if last >= self.vocab_size:
                return torch.tanh(0.5 * before + self.prompts[last - self.vocab_size])
            self._sums[tokens] = torch.tanh(0.5 * before + self._in[last])
        return self._sums[tokens]

    def through(self, embedded: torch.Tensor, positions: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """States of the last layer, of rows whose last one that they see is what they come after."""
        made: list[torch.Tensor] = []
        for row in range(embedded.shape[1]):
            before = [other for other in range(row) if seen[row, other]]
            behind = made[before[-1]] if before else torch.zeros(len(embedded), 16)
            made.append(torch.tanh(0.5 * behind + embedded[:, row]))
        return torch.stack(made, 1).roll(-1, -1)


@cache
def tiny_target(vocab_size: int) -> TinyTarget:
    """One for all tests, which remembers the states of texts."""
    return TinyTarget(vocab_size)


@cache
def tiny_head(name: str, vocab_size: int = 12, draft_vocab: int = 0, **options: int) -> Head:
    """A member of the family with random weights, for `TinyTarget`."""
    target = TinyTarget(vocab_size)
    torch.manual_seed(1)
    head = HEADS[name](HEADS[name].configure(target, draft_vocab=draft_vocab, **options), target)
    with torch.no_grad():
        for weight in head.parameters():
            if weight.requires_grad and weight.dim() > 1:
                weight.normal_(std=0.3)
    if draft_vocab:
        head.choose_vocabulary(torch.arange(1, 1 + draft_vocab), target)
    else:
        head.share(target)
    return head.eval()


class TableStore:
    """A datastore by brute force."""

    def __init__(self, documents: Sequence[Sequence[int]]) -> None:
        self._documents = [list(document) for document in documents]

    tokenizer = "table"

    def continuations(
        self, context: Sequence[int], max_match: int, min_match: int, max_occurrences: int, length: int
    ) -> tuple[int, np.ndarray]:
        for matched in range(min(max_match, len(context)), min_match - 1, -1):
            suffix = list(context[-matched:])
            found = []
            for document in self._documents:
                for i in range(matched, len(document)):
                    if document[i - matched : i] == suffix:
                        row = document[i : i + length]
                        found.append(row + [-1] * (length - len(row)))
            if found:
                return matched, np.array(found[:max_occurrences])
        return 0, np.empty((0, length), dtype=np.int64)


def resources_around(
    model: TableModel, draft: TableModel | None = None, documents=(), head: Head | None = None
) -> Resources:
    """Resources in which a table model is every model: draft, self and skippable; the trained drafter knows nothing."""
    head = head or tiny_head("eagle3", model.vocab_size)
    tiny_target(model.vocab_size).prompts = head.prompts
    return Resources(
        vocab_size=model.vocab_size,
        draft_model=draft or model,
        self_model=model,
        skippable=model,
        datastore=TableStore(documents) if documents else None,
        head=head,
    )


class Lab:
    """The helpers above, handed out by a fixture: test folders are no packages to import from."""

    Model, Store, Target = TableModel, TableStore, TinyTarget
    head = staticmethod(tiny_head)
    plain = staticmethod(plain)
    keyed = staticmethod(keyed)
    speculate = staticmethod(speculate)
    tree_logits = staticmethod(tree_logits)
    top_successors = staticmethod(top_successors)
    resources = staticmethod(resources_around)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Rows of a dozen logits gain nothing from threads, and lose much where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def lab() -> type[Lab]:
    return Lab
