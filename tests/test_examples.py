"""Every example runs as a user would run it, and stays short."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SAYS = {
    "quickstart": "bridge.txt 0 43 verified",
    "draft_and_verify": "guesses accepted",
    "sparse_prefill": "42% of the causal blocks",
    "library_search": "hybrid: mill.md",
    "openai_client": "bridge.txt",
    "own_drafter": "in 8 steps",
    "own_policy": "pyramid:widest=2048: ",
}


def environment(**variables: str) -> dict[str, str]:
    """This one without settings of the machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FOLIO_")}
    return kept | {"FOLIO_KV_MEMORY": "256MiB", "PYTHONPATH": str(ROOT)} | variables


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A service with one document, as `folio serve` starts it."""
    book = tmp_path / "bridge.txt"
    book.write_text("The bridge was built by Ada Miller in 1862. It has seven arches of grey stone.\n")
    settings = environment(FOLIO_HOME=str(tmp_path / "home"), FOLIO_PORT="0")
    folio = [sys.executable, "-m", "service.cli"]
    subprocess.run([*folio, "ingest", str(book)], env=settings, check=True, capture_output=True)
    with subprocess.Popen([*folio, "serve"], env=settings, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = next(word for line in process.stderr for word in line.split() if word.startswith("http://"))
        wait_until_ready(url.rstrip("/"))
        yield url.rstrip("/")
        process.terminate()


def wait_until_ready(url: str) -> None:
    """Wait for `/readyz`."""
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.25)
    pytest.fail("the service did not become ready")


def run(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **variables: str) -> str:
    """What an example prints; run in this process, where what it imports is at hand."""
    for setting in [name for name in os.environ if name.startswith("FOLIO_")]:
        monkeypatch.delenv(setting)
    for setting, value in environment(**variables).items():
        monkeypatch.setenv(setting, value)
    capsys.readouterr()
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.parametrize("name", [path.stem for path in EXAMPLES if path.stem not in ("openai_client", "quickstart")])
def test_an_example_runs(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert SAYS[name] in run(name, monkeypatch, capsys)


def test_the_first_example_runs_as_a_user_runs_it() -> None:
    command = [sys.executable, str(ROOT / "examples" / "quickstart.py")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert SAYS["quickstart"] in done.stdout


@pytest.mark.slow
def test_the_openai_client_talks_to_a_service(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert SAYS["openai_client"] in run("openai_client", monkeypatch, capsys, FOLIO_URL=address)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 40
