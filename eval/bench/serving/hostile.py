"""A service under attack: how it answers others meanwhile, what it takes, and what the attacker is told.

A service of its own with two keys and the embedded model. While each of `attacks` runs, three observers
ask for its health over a connection of its own each time, complete four tokens for another tenant, and add up memory;
during attacks with files the other tenant uploads one too.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import httpx
import typer
from typer import Option

from eval.bench.base import BenchOptions, Figures, Row, bench
from eval.bench.serving.attacks import ATTACKS, Attack, Target
from eval.bench.serving.serve import Server, serving
from service.accounts.keys import KeyStore
from service.libraries import open_library
from service.settings import load_settings

HEALTH_S = 1.0
LATE_S = 2.0
MEMORY_BYTES = 1 << 30
LEAST_S = 2.0
OPERATOR = "key-of-the-operator-0123456789abcdef"


@dataclass
class Seen:
    """What the observers saw during one attack; seconds and bytes."""

    health: list[float] = field(default_factory=list)
    completions: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    upload: float | None = None
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Rest:
    """The service before any attack."""

    completion_s: float
    memory: int
    children: int


class House:
    """A service with two tenants."""

    def __init__(self, server: Server, alice: str, bob: str) -> None:
        self._server = server
        self.url = server.endpoint.url
        self.target = Target(int(self.url.rpartition(":")[2]), bob, server.endpoint.model)
        self._alice = {"Authorization": f"Bearer {alice}"}
        self._uploads = 0
        self.upload()
        self.complete(structured_outputs={"regex": "a+"}, ignore_eos=False)  # its child stays, and is of rest
        for _ in range(3):
            self.complete()
        self.rest = Rest(median(self.complete() for _ in range(5)), self.memory(), len(self._tree()))

    def attack(self, attack: Attack, least_s: float = LEAST_S) -> dict[str, Any]:
        """Run it under observation, for some seconds at least; a row of figures."""
        seen, stop = Seen(), threading.Event()
        before = self.memory()  # with the pages of KV that were used so far: they are the service's, and stay
        watching = [
            threading.Thread(target=self._watch, args=(observe, seen, stop, pause), daemon=True)
            for observe, pause in (
                (lambda: seen.health.append(self.health()), 0.05),
                (lambda: seen.completions.append(self.complete()), 0.1),
                (lambda: seen.memory.append(self.memory()), 0.2),
            )
        ]
        if attack.kind == "files":
            watching.append(threading.Thread(target=self._upload_beside, args=(seen,), daemon=True))
        for thread in watching:
            thread.start()
        began = time.perf_counter()
        try:
            told = attack.run(self.target)
        except (httpx.HTTPError, OSError) as error:
            told = f"{type(error).__name__}: {error}"
        time.sleep(max(0.0, began + least_s - time.perf_counter()))
        seconds = time.perf_counter() - began
        stop.set()
        for thread in watching:
            thread.join(120)
        return {
            "kind": attack.kind,
            "attack": attack.name,
            "seconds": seconds,
            "health_s": max(seen.health, default=None),
            "late_s": max(seen.completions, default=0.0) - self.rest.completion_s if seen.completions else None,
            "upload_s": seen.upload,
            "memory_gb": (max(seen.memory, default=before) - before) / 1e9,
            "alive": self.alive(),
            "told": told[:160],
            "faults": seen.faults[:5],
        }

    def health(self) -> float:
        """Seconds to `/healthz`, over a new connection."""
        began = time.perf_counter()
        httpx.get(f"{self.url}/healthz", timeout=60).raise_for_status()
        return time.perf_counter() - began

    def complete(self, **more: Any) -> float:
        """Seconds for four tokens of the other tenant's."""
        body = {"model": self.target.model, "prompt": "The bridge has", "max_tokens": 4, "ignore_eos": True, **more}
        began = time.perf_counter()
        answer = httpx.post(f"{self.url}/v1/completions", json=body, headers=self._alice, timeout=120)
        answer.raise_for_status()
        return time.perf_counter() - began

    def upload(self) -> float:
        """Seconds until a small file of the other tenant's can be found."""
        self._uploads += 1
        file = {"file": (f"{self._uploads}.txt", f"The bridge number {self._uploads} has seven arches.".encode())}
        began = time.perf_counter()
        job = httpx.post(f"{self.url}/v1/documents", files=file, headers=self._alice, timeout=120).raise_for_status()
        while True:
            path = f"{self.url}/v1/jobs/{job.json()['id']}"
            status = httpx.get(path, headers=self._alice, timeout=120).raise_for_status().json()["status"]
            if status == "done":
                return time.perf_counter() - began
            if status not in ("queued", "running"):
                raise RuntimeError(f"the upload of the other tenant is {status}")
            time.sleep(0.05)

    def memory(self) -> int:
        """Bytes of the service and its children, shared ones once."""
        return sum(_proportional_bytes(pid) for pid in self._tree())

    def alive(self) -> bool:
        return Path(f"/proc/{self._server.pid}").exists() and self.health() < 60

    def children_left(self, patience_s: float = 15.0) -> int:
        """Processes more than there were at rest, once the last attack is over."""
        deadline = time.monotonic() + patience_s
        while len(self._tree()) > self.rest.children and time.monotonic() < deadline:
            time.sleep(0.2)
        return max(0, len(self._tree()) - self.rest.children)

    def _tree(self) -> list[int]:
        found, at = [self._server.pid], 0
        while at < len(found):
            for tasks in Path(f"/proc/{found[at]}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    found += map(int, tasks.read_text().split())
            at += 1
        return found

    def _watch(self, observe: Callable[[], None], seen: Seen, stop: threading.Event, pause: float) -> None:
        while not stop.is_set():
            try:
                observe()
            except (httpx.HTTPError, OSError) as error:
                seen.faults.append(f"{type(error).__name__}: {error}"[:200])
            stop.wait(pause)

    def _upload_beside(self, seen: Seen) -> None:
        time.sleep(1)
        try:
            seen.upload = self.upload()
        except (httpx.HTTPError, RuntimeError) as error:
            seen.faults.append(f"{type(error).__name__}: {error}"[:200])


def _proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


@contextlib.contextmanager
def house() -> Iterator[House]:
    """Start a service for two tenants; no rate of their keys slows them down."""
    with tempfile.TemporaryDirectory() as home:
        settings = load_settings(home=Path(home))
        library = open_library(settings)
        try:
            keys, limits = KeyStore(library.database, settings), {"rate_per_minute": 1e6, "concurrency": 1000}
            alice, bob = (keys.create(owner, limits=limits)[1] for owner in ("alice", "bob"))
        finally:
            library.close()
        with serving(HOME=home, API_KEY=OPERATOR) as server:
            yield House(server, alice, bob)


def within(row: dict[str, Any]) -> bool:
    """Whether an attack did no harm."""
    return bool(
        row["alive"]
        and not row["faults"]
        and row["health_s"] is not None
        and row["health_s"] <= HEALTH_S
        and row["late_s"] is not None
        and row["late_s"] <= LATE_S
        and row["memory_gb"] * 1e9 <= MEMORY_BYTES
    )


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """Attack a service of its own; others' waiting times, memory, and what the attacker is told."""

    only: Annotated[str, Option(help="Attacks whose kind or name holds this.")] = ""


def run(options: Options) -> Figures:
    """The figures of every attack; limits: healthz 1 s, four tokens 2 s late, 1 GiB more memory."""
    chosen = [one for one in ATTACKS if options.only in one.kind or options.only in one.name]
    with house() as attacked:
        rows = []
        for one in chosen:
            rows.append(attacked.attack(one))
            typer.echo(f"{one.name}: {rows[-1]['told']}", err=True)
        return {
            "cpus": os.cpu_count(),
            "completion_at_rest_s": attacked.rest.completion_s,
            "memory_at_rest_gb": attacked.rest.memory / 1e9,
            "children_left": attacked.children_left(),
            "missed": [row["attack"] for row in rows if not within(row)],
            "attacks": rows,
        }


def _rows(figures: Figures) -> list[Row]:
    return list(figures["attacks"])


def _harmless(figures: Figures) -> bool:
    return not figures["missed"] and not figures["children_left"]


command = bench(Options, run, "hostile", table=_rows, verdict=_harmless)
