"""Load on a running service, or on any OpenAI endpoint: latency, throughput and what is left behind.

Words are vLLM's: TTFT, time to first token; TPOT = (latency - TTFT) / (tokens - 1); ITL, time between chunks of a
stream; goodput, requests a second that keep the objectives of TTFT and TPOT.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import httpx
import numpy as np
from typer import Option

from eval.bench.base import BenchOptions, Figures, Seed, bench
from eval.bench.runner import random_ids
from eval.errors import EvalError

TTFT_OBJECTIVE_S = 2.0
TPOT_OBJECTIVE_S = 0.2


@dataclass
class Sample:
    """One request as its client saw it; times in seconds since it was sent."""

    status: int = 0
    error: str = ""
    ttft: float | None = None
    latency: float = 0.0
    tokens: int = 0
    cached_tokens: int = 0
    gaps: list[float] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.status == 200 and not self.error and self.ttft is not None

    @property
    def tpot(self) -> float | None:
        return (self.latency - self.ttft) / (self.tokens - 1) if self.ttft is not None and self.tokens > 1 else None


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI server."""

    url: str
    model: str
    key: str | None = None

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=600, limits=limits) as client:
            yield client

    async def complete(
        self, client: httpx.AsyncClient, prompt: Sequence[int], max_tokens: int, leave_after: int | None = None
    ) -> Sample:
        """Stream one greedy completion; ``leave_after`` chunks the client closes the connection."""
        body = {
            "model": self.model,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        sample, sent = Sample(), time.perf_counter()
        last, chunks = sent, 0
        try:
            async with client.stream("POST", "/v1/completions", json=body) as response:
                sample.status = response.status_code
                if response.status_code != 200:
                    await response.aread()
                    return sample
                async for line in response.aiter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    chunk = json.loads(line[6:])
                    now = time.perf_counter()
                    if "error" in chunk:
                        sample.error = str(chunk["error"])
                    if chunk.get("usage"):
                        sample.tokens = chunk["usage"]["completion_tokens"]
                        details = chunk["usage"].get("prompt_tokens_details") or {}
                        sample.cached_tokens = details.get("cached_tokens") or 0
                    if chunk.get("choices"):
                        chunks += 1
                        if sample.ttft is None:
                            sample.ttft = now - sent
                        else:
                            sample.gaps.append(now - last)
                        last = now
                    if leave_after is not None and chunks >= leave_after:
                        break
        except httpx.HTTPError as error:
            sample.error = f"{type(error).__name__}: {error}"
        sample.latency = last - sent
        return sample


def summarise(samples: Sequence[Sample], seconds: float) -> dict[str, Any]:
    """Percentiles, rates and refusals of a run of so many seconds."""
    good = [s for s in samples if s.ok]
    within = [s for s in good if (s.ttft or 0) <= TTFT_OBJECTIVE_S and (s.tpot or 0) <= TPOT_OBJECTIVE_S]
    return {
        "requests": len(samples),
        "completed": len(good),
        "refused_429": sum(s.status == 429 for s in samples),
        "errors": [s.error or f"status {s.status}" for s in samples if not s.ok and s.status != 429][:20],
        "seconds": seconds,
        "requests_per_s": len(good) / seconds,
        "output_tokens_per_s": sum(s.tokens for s in good) / seconds,
        "goodput_requests_per_s": len(within) / seconds,
        "objectives": {"ttft_s": TTFT_OBJECTIVE_S, "tpot_s": TPOT_OBJECTIVE_S},
        "ttft_s": percentiles([s.ttft for s in good if s.ttft is not None]),
        "tpot_s": percentiles([s.tpot for s in good if s.tpot is not None]),
        "itl_s": percentiles([gap for s in good for gap in s.gaps]),
    }


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99)}


@dataclass
class Server:
    """A `folio serve` of our own on a free loopback port."""

    endpoint: Endpoint
    pid: int

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def kv_usage(self) -> float:
        """Share of the KV pages that requests own now."""
        text = httpx.get(f"{self.endpoint.url}/metrics", timeout=60).text
        found = re.search(r"^\S*kv_cache_usage_perc(?:\{[^}]*\})? (\S+)$", text, re.M)
        if found is None:
            raise RuntimeError("the service reports no kv_cache_usage_perc")
        return float(found[1])


@contextmanager
def serving(model: str = "embedded", **settings: str) -> Iterator[Server]:
    """Start the service in a process of its own, wait until it is ready, stop it in the end."""
    with tempfile.TemporaryDirectory() as home, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        values = {"HOME": home, "MODEL": model, "LOG_LEVEL": "warning", **settings}
        environment = {**os.environ, **{f"FOLIO_{name}": value for name, value in values.items()}}
        command = [sys.executable, "-c", "from service.cli.main import main; main()", "serve", "--port", str(port)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_ready(url, process)
            key = settings.get("API_KEY")
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            served = httpx.get(f"{url}/v1/models", headers=headers, timeout=60).json()["data"][0]["id"]
            yield Server(Endpoint(url, served, key), process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_ready(url: str, process: subprocess.Popen[bytes], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            assert process.stderr is not None
            raise RuntimeError(f"the service ended at once: {process.stderr.read().decode()[-2000:]}")
        try:
            if httpx.get(f"{url}/readyz", timeout=60).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"the service was not ready within {timeout_s:.0f} s")


async def poisson(endpoint: Endpoint, options: Options) -> Figures:
    """Requests that arrive by a Poisson process of ``rate`` a second."""
    rng, tasks = random.Random(options.seed), []
    async with endpoint.client() as client:
        began = time.perf_counter()
        for i in range(options.requests):
            prompt = random_ids(options.prompt_tokens, options.seed * 100_003 + i)
            tasks.append(asyncio.create_task(endpoint.complete(client, prompt, options.max_tokens)))
            await asyncio.sleep(rng.expovariate(options.rate))
        samples = await asyncio.gather(*tasks)
        return summarise(samples, time.perf_counter() - began)


@dataclass(frozen=True)
class Load:
    """What clients in a closed loop saw, and how much was answered while all of them were at work."""

    samples: list[Sample]
    seconds: float
    steady_answers: int
    steady_s: float


async def closed_loop(endpoint: Endpoint, prompts: Sequence[Sequence[int]], clients: int, max_tokens: int) -> Load:
    """So many clients work the prompts off. The steady part ends when a client finds no work."""
    waiting: list[Sequence[int]] = list(reversed(prompts))
    samples: list[Sample] = []
    steady: list[tuple[int, float]] = []
    async with endpoint.client() as client:

        async def work() -> None:
            while waiting:
                samples.append(await endpoint.complete(client, waiting.pop(), max_tokens))
            steady.append((len(samples), time.perf_counter() - began))

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(clients)))
        return Load(samples, time.perf_counter() - began, *steady[0])


def shared_document(document_tokens: int = 16384, questions: int = 8, max_tokens: int = 32) -> dict[str, Any]:
    """Concurrent questions on one document, against the same ones one by one without a prefix cache."""
    document = random_ids(document_tokens, seed=1)
    prompts = [document + random_ids(24, seed=100 + i) for i in range(questions)]

    def load(questions: int, clients: int, **settings: str) -> Load:
        with serving(**settings) as server:
            return asyncio.run(closed_loop(server.endpoint, prompts[:questions], clients, max_tokens))

    together, cached = load(questions, clients=questions), load(3, clients=1).samples
    alone = load(questions, clients=1, PREFIX_CACHE="false")
    first, second = (cached[i].ttft or 0.0 for i in (0, 1))
    return {
        "document_tokens": document_tokens,
        "questions": questions,
        "concurrent_with_prefix_cache": summarise(together.samples, together.seconds),
        "one_by_one_without_prefix_cache": summarise(alone.samples, alone.seconds),
        "throughput_ratio": alone.seconds / together.seconds,
        "ttft_first_s": first,
        "ttft_second_s": second,
        "ttft_second_over_first": second / first,
        "cached_tokens_of_second": cached[1].cached_tokens,
    }


async def _churn(server: Server, clients: int, seconds: float, seed: int) -> dict[str, Any]:
    documents = [random_ids(1500, seed=i) for i in range(6)]
    samples: list[Sample] = []
    left, memory = 0, []
    deadline = time.perf_counter() + seconds

    async def client_loop(number: int, client: httpx.AsyncClient) -> None:
        nonlocal left
        rng = random.Random(seed * 1009 + number)
        while time.perf_counter() < deadline:
            prompt = rng.choice(documents)[: rng.randrange(50, 1500)] + random_ids(8, rng.randrange(1 << 30))
            leave = rng.randrange(1, 6) if rng.random() < 0.3 else None
            sample = await server.endpoint.complete(client, prompt, rng.randrange(1, 48), leave)
            if leave is not None and sample.status == 200:
                left += 1
            else:
                samples.append(sample)
            if sample.status == 429:
                await asyncio.sleep(rng.random())

    async def watch() -> None:
        while time.perf_counter() < deadline:
            memory.append((seconds - (deadline - time.perf_counter()), server.resident_bytes()))
            await asyncio.sleep(1)

    async with server.endpoint.client() as client:
        await asyncio.gather(watch(), *(client_loop(i, client) for i in range(clients)))
    await asyncio.sleep(2)

    def level(minute_from: float, minute_to: float) -> float:
        return median(m for t, m in memory if minute_from <= t < minute_to)

    return {
        "clients": clients,
        "left_in_mid_stream": left,
        **summarise(samples, seconds),
        "kv_usage_after": server.kv_usage(),
        "resident_bytes_early": level(seconds * 0.2, seconds * 0.3),
        "resident_bytes_late": level(seconds * 0.9, seconds),
        "resident_late_over_early": level(seconds * 0.9, seconds) / level(seconds * 0.2, seconds * 0.3),
    }


def churn(clients: int = 64, seconds: float = 600, seed: int = 0) -> dict[str, Any]:
    """Many clients that come and go, a third of them leaving in mid-stream: errors, leaked pages, memory.

    Early is the third tenth of the run and late its last tenth: of ten minutes, the third minute and the last.
    """
    with serving(QUEUE_LIMIT="64") as server:
        return asyncio.run(_churn(server, clients, seconds, seed))


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """Load a service and report TTFT, TPOT, ITL, goodput and throughput."""

    scenario: Annotated[str, Option(help="poisson, shared-document or churn.")] = "poisson"
    url: Annotated[str | None, Option(help="Another OpenAI server, for poisson; default: start our own.")] = None
    model: Annotated[str | None, Option(help="Model to serve or to name.")] = None
    key: Annotated[str | None, Option(help="API key of the other server.")] = None
    requests: Annotated[int, Option(min=1, help="Requests of poisson.")] = 64
    rate: Annotated[float, Option(min=0.001, help="Arrivals a second.")] = 4.0
    prompt_tokens: Annotated[int, Option(min=1, help="Prompt length.")] = 512
    max_tokens: Annotated[int, Option(min=1, help="Output length.")] = 64
    seconds: Annotated[float, Option(min=10, help="Length of churn.")] = 600
    seed: Seed = 0


def run(options: Options) -> Figures:
    """The figures of one scenario; ``url`` and ``model`` name another server for ``poisson``."""
    scenario = {"scenario": options.scenario}
    if options.scenario == "shared-document":
        return scenario | shared_document()
    if options.scenario == "churn":
        return scenario | churn(seconds=options.seconds, seed=options.seed)
    if options.scenario != "poisson":
        raise EvalError(f"unknown scenario {options.scenario!r}", hint="There are poisson, shared-document and churn.")
    if options.url is not None:
        endpoint = Endpoint(options.url.rstrip("/").removesuffix("/v1"), options.model or "", options.key)
        return scenario | asyncio.run(poisson(endpoint, options))
    with serving(options.model or "embedded") as server:
        return scenario | asyncio.run(poisson(server.endpoint, options)) | {"kv_usage_after": server.kv_usage()}


command = bench(Options, run, lambda options, figures: f"serve-{options.scenario}")
