"""Ray replicas on this machine: throughput of two beside one, cache hits of affinity beside chance, a replica killed.

Each engine has one core to itself (``--pin``) and one thread. The three parts:

- throughput: clients that ask about prompts of their own, so that nothing is cached; one replica, then two, in turn;
- routing: every document asked about once a round, one question at a time, with caches that hold all documents
  together and not alone;
- loss: a replica killed under load; who is lost, what they are told, when it is back.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Any

import httpx
from typer import Option

from eval.bench.base import BenchOptions, Figures, Model, Seed, bench
from eval.bench.runner import random_ids
from eval.bench.serving.serve import Endpoint, closed_loop, summarise
from eval.errors import EvalError
from service.cluster import deployment
from service.cluster.options import ClusterOptions
from service.settings import Settings, load_settings

DOCUMENTS = 20
QUESTION_TOKENS = 16
PAGE_TOKENS = 64
TARGETS = {"throughput_ratio": 1.8, "hits_ratio": 3.0}
READY_S = 240.0
PARTS = ("throughput", "routing", "loss")


class Cluster:
    """A cluster that can be given another size or routing, each time with empty caches."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.url = f"http://127.0.0.1:{settings.port}"
        self.endpoint = Endpoint(self.url, settings.model)
        self._deployed = False

    def deploy(self, options: ClusterOptions, **changed: Any) -> None:
        """These options, on replicas that have seen nothing yet."""
        if self._deployed:
            deployment.withdraw()
        self._deployed = True
        deployment.serve_application(self.settings.model_copy(update=changed), options)
        self.wait_for(options.replicas)

    def wait_for(self, count: int, without: str = "") -> float:
        """Seconds until so many replicas are ready, one that is named not counted."""
        began = time.perf_counter()
        while len(self.replicas() - {without}) < count:
            if time.perf_counter() - began > READY_S:
                raise RuntimeError(f"{count} replicas were not ready within {READY_S:.0f} s")
            time.sleep(0.2)
        return time.perf_counter() - began

    def replicas(self) -> set[str]:
        try:
            text = httpx.get(f"{self.url}/metrics", timeout=60).text
        except httpx.HTTPError:
            return set()
        return set(re.findall(r'^folio:ready\{replica="([^"]+)"\} 1.0$', text, re.M))


@contextmanager
def cluster(model: str, cpus: int) -> Iterator[Cluster]:
    """A Ray of this machine alone, with a data folder of its own."""
    with tempfile.TemporaryDirectory() as home:
        port = deployment.free_port("127.0.0.1")
        settings = load_settings(home=home, model=model, port=port, threads=1, drain_timeout_s=5)
        deployment.start_ray(None, cpus=cpus)
        try:
            yield Cluster(settings)
        finally:
            deployment.stop_serving()


def throughput(running: Cluster, repeats: int, requests: int, prompt_tokens: int, max_tokens: int) -> dict[str, Any]:
    """Requests a second of one replica and of two, in turn; prompts share nothing."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    last: dict[int, dict[str, Any]] = {}
    for repeat in range(repeats):
        for count in (1, 2):
            running.deploy(ClusterOptions(replicas=count, pin=True))
            seed = 1000 * (2 * repeat + count)
            prompts = [random_ids(prompt_tokens, seed + i) for i in range(requests * count)]
            asyncio.run(closed_loop(running.endpoint, [random_ids(64, seed - i) for i in range(8)], 8, 2))
            load = asyncio.run(closed_loop(running.endpoint, prompts, 4 * count, max_tokens))
            last[count] = summarise(load.samples, load.seconds)
            rates[count].append(load.steady_answers / load.steady_s)
    one, two = median(rates[1]), median(rates[2])
    return {
        "prompt_tokens": prompt_tokens,
        "max_tokens": max_tokens,
        "clients_per_replica": 4,
        "requests_per_s": {"1": rates[1], "2": rates[2]},
        "throughput_ratio": two / one,
        "last": {str(count): figures for count, figures in last.items()},
    }


def routing(
    running: Cluster, replicas: int, cached_documents: int, times: int, tokens: int, seed: int
) -> dict[str, Any]:
    """Cache hits over 20 documents, each asked about once a round, under affinity and under chance."""
    kv_memory = _kv_memory(running.settings, cached_documents, tokens)
    rng = random.Random(seed)
    order = [document for _ in range(times) for document in rng.sample(range(DOCUMENTS), DOCUMENTS)]
    found: dict[str, Any] = {}
    for policy in ("affinity", "random"):
        options = ClusterOptions(replicas=replicas, pin=True, routing=policy)  # type: ignore[arg-type]
        running.deploy(options, kv_memory=kv_memory)
        found[policy] = asyncio.run(_questions(running.endpoint, order, tokens, seed))
    hits = {policy: figures["hits"] for policy, figures in found.items()}
    return {
        "replicas": replicas,
        "documents": DOCUMENTS,
        "document_tokens": tokens,
        "cached_documents_per_replica": cached_documents,
        "rounds": times,
        "seed": seed,
        **found,
        "hits_ratio": hits["affinity"] / max(1, hits["random"]),
    }


async def _questions(endpoint: Endpoint, order: Sequence[int], tokens: int, seed: int) -> dict[str, Any]:
    """One question at a time; a hit is a question that finds at least half of its document."""
    samples = []
    async with endpoint.client() as client:
        for number, document in enumerate(order):
            prompt = random_ids(tokens, 7000 + document) + random_ids(QUESTION_TOKENS, seed * 7919 + number)
            samples.append(await endpoint.complete(client, prompt, 4))
    hits = [sample for sample in samples if sample.cached_tokens >= tokens / 2]
    misses = [sample for sample in samples if sample.cached_tokens < tokens / 2]
    return {
        "questions": len(samples),
        "failed": sum(not sample.ok for sample in samples),
        "hits": len(hits),
        "cached_tokens": sum(sample.cached_tokens for sample in samples),
        "median_hit_s": median(sample.latency for sample in hits) if hits else None,
        "median_miss_s": median(sample.latency for sample in misses) if misses else None,
    }


def _kv_memory(settings: Settings, documents: int, tokens: int) -> int:
    """Bytes of KV for so many documents, and one request in flight, in float32."""
    from service.engine.loading.checkpoint import read_config

    config = read_config(settings.model)
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    pages = documents * -(-tokens // PAGE_TOKENS) + 2
    return pages * PAGE_TOKENS * per_token


def loss(running: Cluster, requests: int, prompt_tokens: int, max_tokens: int) -> dict[str, Any]:
    """Kill a replica under load: requests lost and kept, what the lost ones are told, seconds until it is back."""
    running.deploy(ClusterOptions(replicas=2, pin=True))
    victim = sorted(running.replicas())[0]
    answers, killed_at = asyncio.run(_kill_under_load(running, victim, requests, prompt_tokens, max_tokens))
    back_s = running.wait_for(2, without=victim)
    lost = [answer for answer in answers if answer["error"]]
    return {
        "requests": len(answers),
        "in_flight_on_the_replica": sum(answer["replica"] == victim for answer in answers if answer["in_flight"]),
        "lost": len(lost),
        "lost_elsewhere": sum(answer["replica"] not in (victim, "") for answer in lost),
        "kept_on_the_other": sum(not answer["error"] for answer in answers),
        "errors": sorted({answer["error"] for answer in lost}),
        "seconds_to_two_replicas_after_the_load": back_s,
        "killed_at_s": killed_at,
        "answered_afterwards": _answers_now(running),
    }


async def _kill_under_load(
    running: Cluster, victim: str, requests: int, prompt_tokens: int, max_tokens: int
) -> tuple[list[dict[str, Any]], float]:
    began = time.perf_counter()
    started: list[dict[str, Any]] = []

    async def ask(client: httpx.AsyncClient, number: int) -> dict[str, Any]:
        body = {
            "model": running.endpoint.model,
            "prompt": random_ids(prompt_tokens, 90_000 + number),
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "drafter": "none",
            "stream": True,
        }
        answer: dict[str, Any] = {"replica": "", "error": "", "in_flight": True}
        started.append(answer)
        async with client.stream("POST", "/v1/completions", json=body) as response:
            answer["replica"] = response.headers.get("x-folio-replica", "")
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    answer["error"] = json.loads(line[6:]).get("error", {}).get("message", "")
            if response.status_code != 200:
                answer["error"] = f"status {response.status_code}"
        return answer

    async with running.endpoint.client() as client:
        asked = [asyncio.create_task(ask(client, number)) for number in range(requests)]
        while sum(answer["replica"] == victim for answer in started) < 2:
            await asyncio.sleep(0.05)
        for answer, task in zip(started, asked, strict=True):
            answer["in_flight"] = not task.done()
        killed_at = time.perf_counter() - began
        await asyncio.to_thread(_kill, victim)
        return list(await asyncio.gather(*asked)), killed_at


def _kill(replica: str) -> None:
    import ray

    ray.kill(ray.get_actor(f"SERVE_REPLICA::{deployment.APP}#Engine#{replica}", namespace="serve"))


def _answers_now(running: Cluster) -> int:
    prompts = [random_ids(64, 95_000 + i) for i in range(8)]
    load = asyncio.run(closed_loop(running.endpoint, prompts, 4, 4))
    return sum(sample.ok for sample in load.samples)


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """Ray replicas on this machine: throughput, cache hits by routing, a replica killed under load."""

    model: Model = "embedded"
    part: Annotated[tuple[str, ...], Option(help="throughput, routing or loss; may be repeated.")] = PARTS
    repeats: Annotated[int, Option(min=1, help="Runs of each size, in turn.")] = 2
    requests: Annotated[int, Option(min=1, help="Requests a replica in a run of throughput.")] = 32
    prompt_tokens: Annotated[int, Option(min=64, help="Prompt length of throughput.")] = 3072
    document_tokens: Annotated[int, Option(min=128, help="Document length of routing.")] = 1024
    seed: Seed = 1


def run(options: Options) -> Figures:
    """The figures of the parts that are asked for."""
    if unknown := set(options.part) - set(PARTS):
        raise EvalError(f"unknown part {min(unknown)!r}", hint=f"There are {', '.join(PARTS)}.", param="part")
    figures: Figures = {"model": options.model, "targets": TARGETS, "pinned_cores_per_replica": 1}
    with cluster(options.model, cpus=4) as running:
        if "throughput" in options.part:
            figures["throughput"] = throughput(running, options.repeats, options.requests, options.prompt_tokens, 16)
        if "routing" in options.part:
            figures["routing"] = [
                routing(running, replicas, cached, 3, options.document_tokens, options.seed)
                for replicas, cached in ((2, 11), (4, 7))
            ]
        if "loss" in options.part:
            figures["loss"] = loss(running, 8, 512, 200)
    return figures


command = bench(Options, run, "cluster")
