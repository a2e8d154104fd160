"""Kill the process anywhere: what was acknowledged is there, what was deleted is not, and recovery can be repeated."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import crash_child
import numpy as np
import pytest
from conftest import WordEmbedder

import retrieval
from retrieval.common.failpoints import EXIT_CODE
from retrieval.library import Library

pytestmark = pytest.mark.crash

PACKAGE = Path(retrieval.__file__).parent
FILES_OF_A_GENERATION = ["dense.faiss", "rows.npz", "documents.json"]


def failpoints() -> list[str]:
    """Every failpoint of the library, found in its source; those of the kNN datastore are ``test_knn``'s."""
    names = set()
    for path in set(PACKAGE.rglob("*.py")) - {PACKAGE / "common/failpoints.py", PACKAGE / "knn/store.py"}:
        for name in re.findall(r'failpoint\(f?"([^"]+)"\)', path.read_text()):
            names |= {name.replace("{name}", file) for file in FILES_OF_A_GENERATION} if "{" in name else {name}
    return sorted(names)


def on_each_database(names: list[str]) -> list[object]:
    """All on SQLite; on PostgreSQL the steps of SQL by default, the others (which touch files alone) when asked."""
    params: list[object] = [pytest.param("sqlite", name) for name in names]
    for name in names:
        slow = (
            []
            if re.match(r"ingest\.(chunks|before|after)|delete\.|.*sql$|reembed|switch", name)
            else [pytest.mark.slow]
        )
        params.append(pytest.param("postgres", name, marks=[pytest.mark.postgres, *slow]))
    return params


@pytest.fixture(scope="module")
def processes():
    """Processes forked from one that has imported everything: a start costs milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["crash_child", "retrieval.library", "alembic.command"])
    return context


@pytest.fixture
def place(tmp_path: Path, database_url: Callable[[Path], str]) -> tuple[Path, str, Path]:
    home = tmp_path / "home"
    home.mkdir()
    return home, database_url(home), tmp_path / "log"


def recover(home: Path, url: str, log: Path) -> None:
    """Open twice; both times everything acknowledged is there, and nothing changes in between."""
    acknowledged = crash_child.Acknowledged.read(log)
    states = []
    for _ in range(2):
        with opened(home, url) as library:
            states.append((crash_child.check(library, acknowledged), library.stats().chunks))
    assert states[0] == states[1]


@contextlib.contextmanager
def opened(home: Path, url: str):
    """With the embedder that is current: the process may have died while it changed."""
    for embedder in (WordEmbedder(), WordEmbedder(name="other")):
        with Library.open(home, url, embedder=embedder) as library:
            try:
                library.warm_up()
            except retrieval.errors.EmbedderMismatch:
                continue
            yield library
            return
    raise AssertionError("the library belongs to no embedder")


@pytest.mark.parametrize(("database_url", "name"), on_each_database(failpoints()), indirect=["database_url"])
def test_a_failpoint_at_every_commit_step(name: str, place, processes) -> None:
    home, url, log = place
    child = processes.Process(target=crash_child.scripted, args=(str(home), url, str(log), name))
    child.start()
    child.join(60)
    assert child.exitcode == EXIT_CODE, f"{name} was not reached"
    recover(home, url, log)


def kill_at_random(place, processes, rounds: int, seed: int) -> None:
    home, url, log = place
    rng = np.random.default_rng(seed)
    for number in range(rounds):
        child = processes.Process(target=crash_child.endless, args=(str(home), url, str(log), seed + number))
        child.start()
        size = log.stat().st_size if log.exists() else 0
        while child.is_alive() and (not log.exists() or log.stat().st_size == size):
            time.sleep(0.005)  # until it is ready
        time.sleep(float(rng.uniform(0, 0.6)))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL, "the process ended by itself"
        recover(home, url, log)


def test_a_few_random_kills(place, processes) -> None:
    kill_at_random(place, processes, rounds=4, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_random_kills(place, processes) -> None:
    kill_at_random(place, processes, rounds=200, seed=1000)


def test_the_environment_names_a_failpoint(tmp_path: Path) -> None:
    program = (
        "from retrieval.common.failpoints import failpoint\nfor _ in range(3): print(1, flush=True); failpoint('x')"
    )
    environment = os.environ | {"FOLIO_FAILPOINT": "x:2"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (EXIT_CODE, "1\n1\n")
