"""A real Ray on this machine: two replicas of a tiny model, a document's replica, a replica killed, a drain."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.cluster import deployment
from service.cluster.options import ClusterOptions
from service.errors import InvalidRequest
from service.settings import Settings, load_settings

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
pytest.importorskip("ray", reason="ray is not installed: pip install 'folio-serve[cluster]'")

OPTIONS = ClusterOptions(replicas=2)
ELASTIC = ClusterOptions(replicas=1, max_replicas=2, downscale_delay_s=1)
READY_S = 240.0


@dataclass
class Cluster:
    """A running cluster, and what a test does to it."""

    url: str
    settings: Settings

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        answer = httpx.post(self.url + path, json=body, timeout=120)
        assert answer.status_code in (200, 404), answer.text
        return answer

    def complete(self, prompt: str, tokens: int = 4) -> httpx.Response:
        return self.post("/v1/completions", self.completion(prompt, tokens))

    def completion(self, prompt: str, tokens: int, stream: bool = False) -> dict[str, Any]:
        """The body of a request that gives exactly so many tokens."""
        body = {"model": self.settings.model, "prompt": prompt, "max_tokens": tokens, "drafter": "none"}
        return body | {"temperature": 0, "ignore_eos": True} | ({"stream": True} if stream else {})

    def replicas(self) -> set[str]:
        """Names of the replicas that are ready."""
        text = httpx.get(f"{self.url}/metrics", timeout=60).text
        return set(re.findall(r'^folio:ready\{replica="([^"]+)"\} 1.0$', text, re.M))

    def kv_usage(self) -> list[float]:
        text = httpx.get(f"{self.url}/metrics", timeout=60).text
        return [float(value) for value in re.findall(r"^folio:kv_cache_usage_perc\{.*\} (\S+)$", text, re.M)]

    def wait_for(self, what: Callable[[], bool], seconds: float = READY_S) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, "the cluster does not come to that state"
            time.sleep(0.5)

    def kill(self, replica: str) -> None:
        """End a replica's process at once."""
        import ray

        ray.kill(ray.get_actor(f"SERVE_REPLICA::folio#Engine#{replica}", namespace="serve"))


@pytest.fixture(scope="module")
def cluster(tiny_model: Path, home_with_documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    settings = load_settings(
        home=shutil.copytree(home_with_documents / "home", tmp_path_factory.mktemp("cluster") / "home"),
        model=str(tiny_model),
        port=deployment.free_port("127.0.0.1"),
        kv_memory=64 << 20,
        threads=1,
        drain_timeout_s=60,
    )
    deployment.start_ray(None, cpus=4)
    try:
        deployment.serve_application(settings, OPTIONS)
        running = Cluster(f"http://127.0.0.1:{settings.port}", settings)
        running.wait_for(lambda: len(running.replicas()) == 2)
        yield running
    finally:
        deployment.stop_serving()


def test_every_route_of_the_application_is_there(cluster: Cluster) -> None:
    assert httpx.get(f"{cluster.url}/readyz").json()["status"] == "ready"
    found = httpx.get(f"{cluster.url}/v1/documents", timeout=60).json()["documents"]
    assert {document["name"] for document in found} == {"bridge.txt", "trees.md"}
    assert cluster.post("/v1/search", {"query": "Who built the bridge?"}).json()["results"]
    refused = cluster.post("/v1/answer", {"question": "Who?", "documents": ["nowhere"]})
    assert refused.status_code == 404
    assert "nowhere" in refused.json()["detail"]


def test_a_document_keeps_its_replica_and_its_pages(cluster: Cluster) -> None:
    documents = [f"Document {i}: " + f"words of document {i}, " * 100 for i in range(8)]
    homes: list[set[str]] = []
    for document in documents:
        answers = [cluster.complete(document + f" Question {q}?") for q in range(3)]
        homes.append({answer.headers["x-folio-replica"] for answer in answers})
        cached = [answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
        assert cached[0] == 0
        assert min(cached[1:]) > 1000
    assert all(len(home) == 1 for home in homes)
    assert len(set.union(*homes)) == 2, "both replicas have documents"


def test_an_answer_streams_through_the_gateway(cluster: Cluster) -> None:
    body = {"question": "Who built the bridge?", "stream": True, "max_tokens": 40}
    events, times = [], []
    with httpx.stream("POST", f"{cluster.url}/v1/answer", json=body, timeout=120) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("event: "):
                events.append(line[7:])
                times.append(time.monotonic())
    assert events[0] == "search_results"
    assert events[-1] == "done"
    assert events.count("message") > 2
    assert times[-1] > times[1], "it comes piece by piece"


def test_tokens_are_those_of_one_process(cluster: Cluster) -> None:
    from service.engine.params import SamplingParams
    from service.models import load_engine

    prompt = "The bridge at Hampton was built by"
    answer = cluster.complete(prompt, 24).json()["choices"][0]["text"]
    with load_engine(cluster.settings) as engine:
        ids = list(engine.engine.tokenizer(prompt).input_ids)
        (alone,) = engine.generate([ids], SamplingParams(max_tokens=24, ignore_eos=True))
    assert answer == alone.text


def test_a_client_that_leaves_gives_its_pages_back(cluster: Cluster) -> None:
    body = cluster.completion("A long one", 4000, stream=True)
    with httpx.stream("POST", f"{cluster.url}/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        for _ in range(6):
            next(lines)
        assert max(cluster.kv_usage()) > 0
    cluster.wait_for(lambda: max(cluster.kv_usage()) == 0, 30)


def test_a_killed_replica_loses_its_requests_in_flight_and_comes_back(cluster: Cluster) -> None:
    """Others go on; what was in flight there gets one clear error; the next request goes elsewhere."""
    killed: list[str] = []

    async def ask(client: httpx.AsyncClient, number: int) -> tuple[str, list[dict[str, Any]]]:
        body = cluster.completion(f"Text number {number}. " * 20, 1500, stream=True)
        found: list[dict[str, Any]] = []
        async with client.stream("POST", "/v1/completions", json=body) as response:
            name = response.headers.get("x-folio-replica", "")
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    found.append(json.loads(line[6:]))
                    if number == 0 and len(found) == 3:
                        killed.append(name)
                        await asyncio.to_thread(cluster.kill, name)
        return name, found

    async def load() -> list[tuple[str, list[dict[str, Any]]]]:
        async with httpx.AsyncClient(base_url=cluster.url, timeout=300) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(8)))

    answers = asyncio.run(load())
    assert len({name for name, _ in answers}) == 2, "both replicas had work"
    for name, found in answers:
        if name in killed:
            assert found[-1]["error"]["code"] == "replica_lost"
            assert "Send it again" in found[-1]["error"]["message"]
        else:
            assert found[-1]["choices"][0]["finish_reason"] == "length"
    for number in range(4):
        assert cluster.complete(f"Text number {number}. " * 20).status_code == 200
    cluster.wait_for(lambda: len(cluster.replicas() - set(killed)) == 2)


def test_scaling_down_drains(cluster: Cluster) -> None:
    """Answers under way on a replica that goes are finished."""

    async def ask(client: httpx.AsyncClient, number: int) -> str:
        body = cluster.completion(f"Passage number {number}. " * 20, 600, stream=True)
        last = ""
        async with client.stream("POST", "/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                last = line if line.startswith("data: {") else last
        return str(json.loads(last[6:])["choices"][0]["finish_reason"])

    async def load() -> list[str]:
        async with httpx.AsyncClient(base_url=cluster.url, timeout=300) as client:
            asked = [asyncio.create_task(ask(client, number)) for number in range(8)]
            await asyncio.sleep(2)
            await asyncio.to_thread(deployment.serve_application, cluster.settings, ELASTIC)
            return await asyncio.gather(*asked)

    assert asyncio.run(load()) == ["length"] * 8
    cluster.wait_for(lambda: len(cluster.replicas()) == 1)


def test_load_adds_an_engine(cluster: Cluster) -> None:
    """More in flight than one engine decodes at once; after `test_scaling_down_drains`, which left one."""

    async def ask(client: httpx.AsyncClient, number: int) -> int:
        body = cluster.completion(f"Chapter number {number}. " * 20, 3000)
        return (await client.post("/v1/completions", json=body)).status_code

    async def load() -> None:
        async with httpx.AsyncClient(base_url=cluster.url, timeout=600) as client:
            asked = [asyncio.create_task(ask(client, number)) for number in range(60)]
            await asyncio.to_thread(cluster.wait_for, lambda: len(cluster.replicas()) == 2)
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(load())
    cluster.wait_for(lambda: max(cluster.kv_usage()) == 0, 60)


def test_sqlite_is_refused_on_several_machines(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": True}])
    with pytest.raises(InvalidRequest, match="SQLite is on one"):
        deployment.serve_application(cluster.settings, OPTIONS)
