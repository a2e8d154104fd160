"""Replicas, their caches and the routing between them, in simulated time.

Discrete events: a question arrives, or one is answered. The routing is the cluster's own (`service.cluster.affinity`).
A replica serves its questions one after the other; what it needs for each is `Service`. Its cache keeps whole documents
up to a number of tokens and gives up the one used longest ago, as the engine does with pages.

What is left out: batching of decode steps (in `Service.answer_s` as an average), documents that begin alike, the
gateway's own time, and replicas that start or fail.
"""

from __future__ import annotations

import heapq
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from service.cluster.affinity import POLICIES, Policy


@dataclass(frozen=True)
class Question:
    """One request: `arrives` seconds after the start, about a document."""

    arrives: float
    document: int


@dataclass(frozen=True)
class Service:
    """What a replica needs.

    Attributes:
        read_s: seconds to prefill a document that is not in the cache.
        answer_s: seconds for the rest: the question's own tokens and the answer.
        document_tokens: length of a document.
        cache_tokens: tokens of KV that a replica keeps.
    """

    read_s: float
    answer_s: float
    document_tokens: int
    cache_tokens: int

    @property
    def cache_documents(self) -> int:
        return self.cache_tokens // self.document_tokens


@dataclass
class Replica:
    """A queue, a cache and a clock."""

    waiting: deque[Question] = field(default_factory=deque)
    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)
    busy_s: float = 0.0
    working: bool = False

    @property
    def in_flight(self) -> int:
        return len(self.waiting)  # the one being served is still at the front

    def lookup(self, document: int, capacity: int) -> bool:
        """Whether the document is there; from now on it is, if it fits at all."""
        hit = document in self.cache
        if capacity > 0:
            self.cache[document] = None
            self.cache.move_to_end(document)
        while len(self.cache) > capacity:
            self.cache.popitem(last=False)
        return hit


@dataclass(frozen=True)
class Outcome:
    """What a simulation found. arrivals = served + queued, always."""

    arrivals: int
    served: int
    queued: int
    hits: int
    lookups: int
    seconds: float
    latencies: tuple[float, ...]
    busy_share: tuple[float, ...]

    @property
    def hit_rate(self) -> float:
        return self.hits / self.lookups if self.lookups else 0.0

    @property
    def throughput(self) -> float:
        return self.served / self.seconds if self.seconds else 0.0

    def figures(self) -> dict[str, Any]:
        ordered = sorted(self.latencies)
        at = {p: ordered[min(len(ordered) - 1, int(p / 100 * len(ordered)))] for p in (50, 95, 99)} if ordered else {}
        return {
            "arrivals": self.arrivals,
            "served": self.served,
            "queued": self.queued,
            "hit_rate": self.hit_rate,
            "throughput_per_s": self.throughput,
            "latency_s": {f"p{p}": value for p, value in at.items()},
            "busiest_replica": max(self.busy_share),
            "idlest_replica": min(self.busy_share),
        }


class Simulation:
    """`replicas` replicas under one routing policy.

    Questions come by themselves (`run`), or each client asks its next when its last is answered (`run_clients`).
    `name`: of the replicas, before their number; other names share the documents out differently.
    """

    def __init__(self, service: Service, replicas: int, policy: Policy, name: str = "replica-") -> None:
        self.service = service
        self.policy = policy
        self.replicas = {f"{name}{number}": Replica() for number in range(replicas)}
        self.now = 0.0
        self._ends: list[tuple[float, str]] = []
        self._latencies: list[float] = []
        self._arrivals = self._hits = self._lookups = 0

    def run(self, questions: Sequence[Question], until: float | None = None) -> Outcome:
        """All questions, in order of arrival; stop at `until`, or when the last is answered."""
        arriving = iter(sorted(questions, key=lambda question: question.arrives))
        following = next(arriving, None)
        while following is not None or self._ends:
            due = self._ends[0][0] if self._ends else float("inf")
            arrives = following.arrives if following is not None else float("inf")
            if until is not None and min(due, arrives) > until:
                self.now = until
                break
            if following is not None and arrives <= due:
                self.now = arrives
                self._arrive(following)
                following = next(arriving, None)
            else:
                self._end()
        return self._outcome()

    def run_clients(self, clients: int, documents: Iterator[int]) -> Outcome:
        """Closed loop: so many clients, each asking about the next of `documents` as soon as it has its answer."""

        def ask() -> None:
            document = next(documents, None)
            if document is not None:
                self._arrive(Question(self.now, document))

        for _ in range(clients):
            ask()
        while self._ends:
            self._end()
            ask()
        return self._outcome()

    def _arrive(self, question: Question) -> None:
        self._arrivals += 1
        loads = {name: replica.in_flight for name, replica in self.replicas.items()}
        name = self.policy.order(f"document {question.document}", loads)[0]
        self.replicas[name].waiting.append(question)
        self._begin(name)

    def _begin(self, name: str) -> None:
        replica = self.replicas[name]
        if replica.working or not replica.waiting:
            return
        hit = replica.lookup(replica.waiting[0].document, self.service.cache_documents)
        self._lookups += 1
        self._hits += hit
        seconds = self.service.answer_s + (0.0 if hit else self.service.read_s)
        replica.working = True
        replica.busy_s += seconds
        heapq.heappush(self._ends, (self.now + seconds, name))

    def _end(self) -> None:
        self.now, name = heapq.heappop(self._ends)
        replica = self.replicas[name]
        replica.working = False
        self._latencies.append(self.now - replica.waiting.popleft().arrives)
        self._begin(name)

    def _outcome(self) -> Outcome:
        queued = sum(replica.in_flight for replica in self.replicas.values())
        shares = tuple(replica.busy_s / self.now if self.now else 0.0 for replica in self.replicas.values())
        served = len(self._latencies)
        return Outcome(
            self._arrivals, served, queued, self._hits, self._lookups, self.now, tuple(self._latencies), shares
        )


def zipf_documents(documents: int, exponent: float, seed: int) -> Iterator[int]:
    """Documents asked about, the n-th most popular with weight n^-exponent; without end. Exponent 0 is uniform."""
    rng = random.Random(seed)
    bounds = list(accumulate((rank + 1) ** -exponent for rank in range(documents)))
    while True:
        yield from rng.choices(range(documents), cum_weights=bounds, k=1024)


def rounds(documents: int, times: int, seed: int) -> Iterator[int]:
    """Every document once a round, in an order of its own each round."""
    rng = random.Random(seed)
    for _ in range(times):
        yield from rng.sample(range(documents), documents)


def poisson(documents: Iterator[int], count: int, rate: float, seed: int) -> list[Question]:
    """So many questions, `rate` a second on average."""
    rng, now = random.Random(seed), 0.0
    questions = []
    for _ in range(count):
        now += rng.expovariate(rate)
        questions.append(Question(now, next(documents)))
    return questions


def compare(
    service: Service,
    replicas: int,
    make_questions: Callable[[], Sequence[Question]],
    policies: Sequence[str] = ("affinity", "random"),
) -> dict[str, Outcome]:
    """The same questions under each policy."""
    return {name: Simulation(service, replicas, POLICIES[name]()).run(make_questions()) for name in policies}
