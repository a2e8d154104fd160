"""Programs of other people against a real service: `pytest -m clients`.

Each client is installed, unmodified, in an environment of its own, which is kept in a cache folder (FOLIO_CLIENT_ENVS)
and shares nothing with ours. A test is marked with the client and with what it shows:

    @pytest.mark.clients("openai-python", "chat")

and what came out is written to eval/results/clients.json, of which `python -m eval.clients` prints the table.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).with_name("programs")
ENVIRONMENTS = Path(os.environ.get("FOLIO_CLIENT_ENVS", Path.home() / ".cache" / "folio-clients"))
MODEL = os.environ.get("FOLIO_MODEL", "smollm2")
KEY = "folio-clients-key-0123456789abcdef"
START_S = 300
INSTALL_S = 900

_versions = pytest.StashKey[dict[str, str]]()
_found = pytest.StashKey[dict[str, dict[str, Any]]]()


@dataclass
class Service:
    """A running service.

    Attributes:
        url: without a path; `base` is what OpenAI's clients are given.
        model: its name, as the service says it.
    """

    url: str
    key: str
    model: str
    process: subprocess.Popen[bytes]

    @property
    def base(self) -> str:
        return f"{self.url}/v1"

    @property
    def variables(self) -> dict[str, str]:
        """What a client's program finds in its environment."""
        return {
            "SERVICE_URL": self.url,
            "SERVICE_BASE": self.base,
            "SERVICE_KEY": self.key,
            "SERVICE_MODEL": self.model,
        }


@dataclass
class ClientEnvironment:
    """A virtual environment with one client and what that wants."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def run(self, command: Sequence[str | Path], variables: dict[str, str] | None = None, timeout: float = 900) -> str:
        """What a command of it (`lm_eval …`) or a program (`python …`) says; fails the test unless it exits with 0.

        Its environment names no proxy, no key and no setting of ours but `variables`.
        """
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("FOLIO_", "OPENAI_", "ANTHROPIC_", "PYTHON"))}
        own = {"PATH": f"{self.folder / 'bin'}:{kept.get('PATH', '')}", "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}
        first = self.folder / "bin" / str(command[0])
        full = [first if first.exists() else command[0], *command[1:]]
        return _run(full, timeout, env=kept | own | (variables or {}))

    def program(self, name: str, part: str, service: Service, timeout: float = 900) -> Any:
        """What the function `part` of a program in `programs/` returns, as JSON, when run in this environment."""
        code = (
            "import json, runpy, sys; found = runpy.run_path(sys.argv[1])[sys.argv[2]](); "
            "print('\\nRESULT ' + json.dumps(found))"
        )
        done = self.run(["python", "-c", code, PROGRAMS / name, part], service.variables, timeout)
        return json.loads(done.rpartition("\nRESULT ")[2])


@dataclass
class NodeEnvironment:
    """A folder with one client of npm's and what that wants."""

    folder: Path

    def program(self, name: str, part: str, service: Service, timeout: float = 900) -> Any:
        """What a part of a program in `programs/` says behind RESULT."""
        shutil.copy(PROGRAMS / name, self.folder)  # where its imports are found
        done = _run(["node", self.folder / name, part], timeout, env={**os.environ, **service.variables})
        return json.loads(done.rpartition("\nRESULT ")[2])


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_versions] = {}
    config.stash[_found] = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Note for each client what was shown."""
    report = (yield).get_result()
    mark = item.get_closest_marker("clients")
    if mark is None or not mark.args or (report.when != "call" and report.passed):
        return
    client, *shown = mark.args
    known = item.config.stash[_found].setdefault(client, {})
    known[", ".join(shown)] = report.outcome


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test of a client installs it."""
    for item in items:
        if item.get_closest_marker("clients") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(INSTALL_S + 900))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Add what this run found to the results; clients and tests that did not run keep theirs."""
    found, versions = session.config.stash[_found], session.config.stash[_versions]
    if not found:
        return
    from eval.figures import RESULTS, save_result

    path = RESULTS / "clients.json"
    clients = json.loads(path.read_text())["figures"] if path.is_file() else {}
    for client, shown in found.items():
        entry = clients.setdefault(client, {"shown": {}})
        entry["version"] = versions.get(client, entry.get("version"))
        entry["shown"] |= shown
    save_result("clients", dict(sorted(clients.items(), key=lambda pair: pair[0].lower())), "pytest -m clients")


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Service]]:
    """Starts `folio serve` with these settings in a process of its own; all end with the session."""
    running: list[Service] = []

    def begin(**settings: str) -> Service:
        home = tmp_path_factory.mktemp("home")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        own = {
            "FOLIO_HOME": str(home),
            "FOLIO_PORT": str(port),
            "FOLIO_API_KEY": KEY,
            "FOLIO_MODEL": MODEL,
            "FOLIO_KV_MEMORY": "512MiB",
            **{f"FOLIO_{name.upper()}": value for name, value in settings.items()},
        }
        kept = {k: v for k, v in os.environ.items() if not k.startswith("FOLIO_")}
        log = (home / "serve.log").open("wb")
        command = [sys.executable, "-c", "from service.cli.main import run; run()", "serve"]
        variables = {**kept, **own, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=log, cwd=ROOT)
        service = Service(f"http://127.0.0.1:{port}", KEY, "", process)
        running.append(service)
        deadline = time.monotonic() + START_S
        while not _answers(f"{service.url}/readyz"):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the service did not start: {(home / 'serve.log').read_text()[-3000:]}")
            time.sleep(0.2)
        request = urllib.request.Request(f"{service.base}/models", headers={"Authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(request, timeout=60) as response:
            service.model = json.load(response)["data"][0]["id"]
        return service

    yield begin
    for service in running:
        service.process.terminate()
    for service in running:
        service.process.wait(60)


@pytest.fixture(scope="session")
def service(start: Callable[..., Service]) -> Service:
    """The service that most clients talk to: FOLIO_MODEL, else smollm2; one key."""
    return start()


@pytest.fixture(scope="session")
def client_env(request: pytest.FixtureRequest) -> Callable[..., ClientEnvironment]:
    """Installs packages, as pip's arguments, in an environment of their own: `client_env("lm_eval[api]")`.

    `client` is the name under which the version of the first package is reported.
    """

    def install(*packages: str, client: str = "") -> ClientEnvironment:
        name = packages[0].partition("[")[0].partition("=")[0]
        environment = ClientEnvironment(_folder("pip", packages))
        if not (environment.folder / ".complete").is_file():
            _renew(environment.folder)
            _run([sys.executable, "-m", "venv", environment.folder], INSTALL_S)
            _run([environment.python, "-m", "pip", "install", "--quiet", *packages], INSTALL_S)
            (environment.folder / ".complete").touch()
        shown = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
        request.config.stash[_versions][client or name] = environment.run(["python", "-c", shown, name]).strip()
        return environment

    return install


@pytest.fixture(scope="session")
def node_env(request: pytest.FixtureRequest) -> Callable[..., NodeEnvironment]:
    """The same with npm: `node_env("openai", client="openai-node")`."""

    def install(*packages: str, client: str) -> NodeEnvironment:
        folder = _folder("npm", packages)
        if not (folder / ".complete").is_file():
            _renew(folder)
            (folder / "package.json").write_text('{"private": true, "type": "module"}')
            _run(["npm", "install", "--prefix", folder, "--no-audit", "--no-fund", *packages], INSTALL_S)
            (folder / ".complete").touch()
        described = json.loads((folder / "node_modules" / packages[0] / "package.json").read_text())
        request.config.stash[_versions][client] = described["version"]
        return NodeEnvironment(folder)

    return install


def _folder(kind: str, packages: Sequence[str]) -> Path:
    name = packages[0].partition("[")[0].partition("=")[0]
    digest = hashlib.sha256("\n".join([sys.version, *packages]).encode()).hexdigest()[:12]
    return ENVIRONMENTS / f"{kind}-{name}-{digest}"


def _renew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _run(command: Sequence[str | Path], timeout: float, env: dict[str, str] | None = None) -> str:
    """What a command says on stdout; fails the test unless it exits with 0."""
    full = [str(part) for part in command]
    done = subprocess.run(full, env=env, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        pytest.fail(f"{' '.join(full)} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
    return done.stdout


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
