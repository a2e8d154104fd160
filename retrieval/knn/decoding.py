"""Decoding with a kNN language model: p = λ·p_kNN + (1 − λ)·p_LM, one look-up a token, the look-ups speculated on.

The sequential loop asks the datastore before every token. The speculative one guesses s tokens with the neighbours in
a cache of its own (at first without any), asks the datastore for all s at once, and keeps the guesses up to the first
*token* that the true neighbours choose differently; there the model is rolled back. Every verified hit brings the
entries behind it into the cache, since text that matched once tends to match on. The tokens are those of the sequential
loop, one by one: a query's neighbours do not depend on its company (``knn_search``), and a choice is keyed by its
position.

Sources: Khandelwal et al. 2020 (kNN-LM), equation 3; RaLMSpec (Zhang et al. 2024), section 4.2 and appendix on kNN-LM.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval.errors import InvalidRequest
from retrieval.iterative.strides import Experience, SpeculationOptions, StrideScheduler
from retrieval.knn.search import Neighbours, Search, check_k
from retrieval.knn.store import Datastore

PREFETCH = 10
"""entries behind a hit that enter the cache with it (RaLMSpec's n)"""
CACHE_ENTRIES = 4096
LONGEST_STRIDE = 32
FIRST_STRIDE = 4
"""guesses before it is known what guesses and searches cost"""
PRIOR = (4.5, 0.5)
"""right and wrong guesses that a request begins with: a wrong one costs a step of the model, little beside a search,
and the neighbours of one token say much about the next"""


@dataclass(frozen=True)
class KnnOptions:
    """How one request uses a datastore.

    Attributes:
        k: neighbours of a token.
        weight: λ, the share of the neighbours in the mixture, 0 to 1.
        temperature: T of p_kNN ∝ Σ exp(−d/T), d the squared distance of the hidden states.
        speculate: guess from the cache and verify in batches; never changes the tokens.
        stride: guesses before a verification; None lets OS³ choose.
        probes: inverted lists looked at for each token; None looks at every entry.
    """

    k: int = 64
    weight: float = 0.25
    temperature: float = 100.0
    speculate: bool = True
    stride: int | None = None
    probes: int | None = None

    def __post_init__(self) -> None:
        check_k(self.k)
        if self.stride is not None and self.stride < 1:
            raise InvalidRequest(f"the stride of speculation must be 1 or more, not {self.stride}")
        if self.probes is not None and self.probes < 1:
            raise InvalidRequest(f"the lists to look at must be 1 or more, not {self.probes}")
        if not 0 <= self.weight <= 1:
            raise InvalidRequest(f"λ, the weight of the neighbours, must be from 0 to 1, not {self.weight}")
        if not 0 < self.temperature < float("inf"):
            raise InvalidRequest(f"the temperature of the neighbours must be above 0, not {self.temperature}")


Choose = Callable[[np.ndarray, int], int]
"""(float64[V] log-probabilities, position of the token) → the token chosen"""


def interpolate(log_p: np.ndarray, values: np.ndarray, distances: np.ndarray, options: KnnOptions) -> np.ndarray:
    """float64[V]: log of λ·p_kNN + (1 − λ)·p_LM.

    log_p float64[V]; values int[m] and distances float32[m] of the neighbours, nearest first; m = 0 leaves log_p.
    """
    if options.weight == 0 or len(values) == 0:
        return log_p
    shares = np.exp((distances[0] - distances).astype(np.float64) / options.temperature)
    tokens, which = np.unique(values, return_inverse=True)
    p_knn = np.bincount(which, weights=shares) / shares.sum()
    with np.errstate(divide="ignore"):  # log 0 is what λ = 1 means for the model's part
        mixed = log_p + np.log1p(-options.weight)
        mixed[tokens] = np.logaddexp(mixed[tokens], np.log(options.weight) + np.log(p_knn))
    return mixed


class KnnCache:
    """The entries that one request has met lately and those behind them; the oldest make room."""

    def __init__(self, store: Datastore, capacity: int = CACHE_ENTRIES) -> None:
        self._store = store
        self._entries = np.full(capacity, -1, dtype=np.int64)
        self._keys = np.empty((capacity, store.identity.dim), dtype=np.float32)
        self._norms = np.full(capacity, np.inf, dtype=np.float32)
        self._held = np.zeros(len(store), dtype=bool)
        self._next = 0
        self._filled = 0

    def __len__(self) -> int:
        return self._filled

    def add(self, hits: np.ndarray, prefetch: int = PREFETCH) -> None:
        """int64[m] entries, nearest first, and the ``prefetch`` entries behind each. Where not all fit, the nearest."""
        capacity = len(self._entries)
        wanted = (hits[:capacity, None] + np.arange(prefetch + 1)).ravel()
        wanted = wanted[wanted < len(self._store)]
        wanted = wanted[~self._held[wanted]]
        _, first = np.unique(wanted, return_index=True)
        fresh = wanted[np.sort(first)][:capacity]
        at = (self._next + np.arange(len(fresh))) % capacity
        gone = self._entries[at]
        self._held[gone[gone >= 0]] = False
        self._held[fresh] = True
        self._entries[at] = fresh
        self._keys[at] = self._store.floats(fresh)
        self._norms[at] = self._store.norms[fresh]
        self._next = (self._next + len(fresh)) % capacity
        self._filled = min(capacity, self._filled + len(fresh))

    def nearest(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(int64[≤k] entries, float32[≤k] squared distances), nearest first: a guess, so rounded as it comes."""
        import torch

        held = slice(0, self._filled)
        products = (torch.from_numpy(self._keys[held]) @ torch.from_numpy(query)).numpy()
        distances = self._norms[held] - 2 * products + np.float32(query @ query)
        rows = np.argpartition(distances, k - 1)[:k] if k < len(distances) else np.arange(len(distances))
        rows = rows[np.argsort(distances[rows])]
        return self._entries[rows], distances[rows]


@dataclass
class KnnStats:
    """What a request did, summed; ``as_dict`` adds what follows from it."""

    k: int = 0
    weight: float = 0.0
    temperature: float = 0.0
    speculate: bool = False
    entries: int = 0
    tokens: int = 0
    rounds: int = 0
    steps: int = 0
    guessed: int = 0
    matched: int = 0
    rollbacks: int = 0
    lookups: int = 0
    model_s: float = 0.0
    cache_s: float = 0.0
    search_s: float = 0.0
    stride: int = 0
    gamma: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """With the acceptance, a and b in seconds, the share of retrieval, and Amdahl's ceiling for that share."""
        total = self.model_s + self.cache_s + self.search_s
        share = self.search_s / total if total else 0.0
        return {
            **vars(self),
            "acceptance": self.matched / self.guessed if self.guessed else None,
            "mean_stride": self.steps / self.rounds if self.rounds else None,
            "a_s": (self.model_s + self.cache_s) / self.steps if self.steps else None,
            "b_s": self.search_s / self.rounds if self.rounds else None,
            "retrieval_share": share,
            "amdahl_ceiling": 1 / (1 - share) if share < 1 else None,
        }


@dataclass
class _Guess:
    log_p: np.ndarray
    hidden: np.ndarray
    token: int | None
    """None where nothing was guessed: the verification chooses"""


class KnnDecoder:
    """The decoding of one request, in rounds: rows of the model are guessed on, then verified together.

    Whoever runs the model calls ``guess`` with each row until it gives None, then ``verify`` (in any thread), then
    ``settle`` for the round's tokens, and takes the model back to them.
    """

    def __init__(
        self,
        search: Search,
        choose: Choose,
        options: KnnOptions,
        max_tokens: int,
        stops: frozenset[int] = frozenset(),
        experience: Experience | None = None,
    ) -> None:
        """``stops`` are tokens behind which nothing is guessed; experience: of requests like it."""
        self._search = search
        self._choose = choose
        self._options = options
        self._max_tokens = max_tokens
        self._stops = stops
        self._strides: StrideScheduler | None = None
        if options.speculate:
            how = SpeculationOptions(options.stride, longest=LONGEST_STRIDE)
            self._strides = StrideScheduler(how, experience, PRIOR)
        self._cache = KnnCache(search.store, max(CACHE_ENTRIES, 2 * options.k))
        self._guesses: list[_Guess] = []
        self._first = 0  # position of the round's first token
        self._found = Neighbours(np.empty((0, 0), np.int64), np.empty((0, 0), np.float32))
        self._waiting: float | None = None  # since when for a row; None before the first, which is the prompt's
        self._timed, self._guess_s, self._verify_s = 0, 0.0, 0.0
        self.stats = KnnStats(options.k, options.weight, options.temperature, options.speculate, len(search.store))

    def guess(self, log_p: np.ndarray, hidden: np.ndarray, position: int) -> int | None:
        """The guess for a token, to go on behind; None where the round ends: its tokens are for ``settle`` to tell.

        float64[V] log-probabilities and float32[d] the hidden state that they are made of; the token's position.
        """
        began = time.perf_counter()
        if not self._guesses:
            self._begin(position)
        token = None
        if self._strides is not None:
            token = self._token(log_p, *self._cache.nearest(hidden, self._options.k), position)
        self._guesses.append(_Guess(log_p, hidden, token))
        self._time_row(began)
        return None if len(self._guesses) == self.stats.stride or token in self._stops else token

    def verify(self) -> None:
        """Look up the neighbours of every row of the round, in one batch."""
        started = time.perf_counter()
        self._found = self._search(np.stack([guess.hidden for guess in self._guesses]), self._options.k)
        self._verify_s = time.perf_counter() - started
        self.stats.search_s += self._verify_s
        self.stats.lookups += len(self._guesses)

    def settle(self) -> list[int]:
        """The tokens of the round: the guesses that were right, and the true token where one was not."""
        tokens: list[int] = []
        matched = 0
        for row, guess in enumerate(self._guesses):
            entries, distances = self._found.entries[row], self._found.distances[row]
            known = entries >= 0
            token = self._token(guess.log_p, entries[known], distances[known], self._first + row)
            tokens.append(token)
            if self._strides is not None:
                self._remember(entries[known])
            if token != guess.token:
                break
            matched += 1
        self.stats.rollbacks += len(tokens) < len(self._guesses)
        self._record(matched)
        self.stats.tokens += len(tokens)
        self._guesses = []
        self._waiting = time.perf_counter()
        return tokens

    def _begin(self, position: int) -> None:
        """Begin a round; not to speculate is a round of one row."""
        self._first = position
        self._timed, self._guess_s = 0, 0.0
        self.stats.stride = 1
        if self._strides is not None:
            stride = self._strides.best() if self._strides.informed else FIRST_STRIDE
            self.stats.stride = min(stride, self._max_tokens - self.stats.tokens)

    def _time_row(self, began: float) -> None:
        """Put down what a row took: the model since the last one, and the guess, which began then."""
        now = time.perf_counter()
        if self._waiting is not None:
            self._timed += 1
            self._guess_s += now - self._waiting
            self.stats.model_s += began - self._waiting
        self._waiting = now
        self.stats.cache_s += now - began
        self.stats.steps += 1

    def _record(self, matched: int) -> None:
        self.stats.rounds += 1
        if self._strides is None:
            return
        if self._timed:
            self._strides.guessed(self._timed, self._guess_s)
        self._strides.searched(len(self._guesses), self._verify_s)
        self._strides.record(matched, len(self._guesses))
        self.stats.gamma = self._strides.gamma
        self.stats.guessed += len(self._guesses)
        self.stats.matched += matched

    def _remember(self, hits: np.ndarray) -> None:
        started = time.perf_counter()
        self._cache.add(hits)
        self.stats.cache_s += time.perf_counter() - started

    def _token(self, log_p: np.ndarray, entries: np.ndarray, distances: np.ndarray, position: int) -> int:
        values = self._search.store.values[entries]
        return self._choose(interpolate(log_p, values, distances, self._options), position)
