"""A real service with the embedded reader in a process of its own, and headless Chromium looking at its page."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

playwright_api = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "retrieval"))  # make_files
HANDBOOK = ROOT / "docs" / "handbook"
START_S = 120
MODEL = os.environ.get("FOLIO_MODEL", "embedded")


@dataclass
class Service:
    """A running service."""

    url: str
    process: subprocess.Popen[bytes]
    home: Path

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            return response.read()

    def json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def text(self, document: str) -> str:
        """Stored text of a document, as the API gives it."""
        return self.get(f"/v1/documents/{document}/text").decode("utf-8")

    def answers(self, path: str) -> bool:
        try:
            return bool(self.get(path))
        except (urllib.error.URLError, ConnectionError):
            return False

    def delete_all(self) -> None:
        for document in self.json("/v1/documents?limit=100")["documents"]:
            request = urllib.request.Request(f"{self.url}/v1/documents/{document['id']}", method="DELETE")
            urllib.request.urlopen(request, timeout=60).close()


def start_service(home: Path, until: str, **settings: str) -> Service:
    """`folio serve` on a free port, its data in `home`; returns when the path `until` answers with 200."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"FOLIO_HOME": str(home), "FOLIO_PORT": str(port), "FOLIO_MODEL": MODEL, **settings}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FOLIO_")} | variables
    log = (home / "serve.log").open("wb")
    command = [sys.executable, "-c", "from service.cli.main import run; run()", "serve"]
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=ROOT)
    service = Service(f"http://127.0.0.1:{port}", process, home)
    deadline = time.monotonic() + START_S
    while not service.answers(until):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"the service did not start: {(home / 'serve.log').read_text()[-2000:]}")
        time.sleep(0.2)
    return service


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Service]]:
    """Starts services, each with a home and settings of its own; they end with the session."""
    started: list[Service] = []

    def start(until: str = "/readyz", **settings: str) -> Service:
        started.append(start_service(tmp_path_factory.mktemp("home"), until, **settings))
        return started[-1]

    yield start
    for service in started:
        service.process.kill()
        service.process.wait()


@pytest.fixture(scope="session")
def service(serve: Callable[..., Service]) -> Service:
    """One service for the tests of the page."""
    return serve()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The system's headless Chromium; no longer than a module, for Playwright's loop runs in this very thread."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Watched:
    """A page, and what it did that it should not have done."""

    page: Any
    service: Service
    console: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()
    """Parts of console messages that this test provokes on purpose."""

    def watch(self) -> None:
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.console.append(f"uncaught: {error}"))
        self.page.on("dialog", lambda dialog: (self.console.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", self._asked)

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.console.append(message.text)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.service.url, "data:", "blob:")):
            self.foreign.append(request.url)

    def check(self) -> None:
        """No request to another host, no word on the console, no dialog, no uncaught error."""
        assert not self.foreign
        assert not [said for said in self.console if not any(part in said for part in self.expected)]

    def upload(self, name: str, data: bytes, media_type: str = "text/plain") -> str:
        """Upload through the page; returns the document's id once it is listed as ready."""
        before = {d["id"] for d in self.service.json("/v1/documents?limit=100")["documents"]}
        self.page.set_input_files("#file", {"name": name, "mimeType": media_type, "buffer": data})
        row = self.page.locator("#document-list .document[data-kind='ready']")
        playwright_api.expect(row).to_have_count(len(before) + 1, timeout=60_000)
        (new,) = {d["id"] for d in self.service.json("/v1/documents?limit=100")["documents"]} - before
        return str(new)

    def ask(self, question: str, wait: bool = True) -> None:
        self.page.fill("#question", question)
        self.page.press("#question", "Enter")
        if wait:
            self.finished()

    def finished(self) -> None:
        self.page.wait_for_selector("#submit:visible", timeout=120_000)

    @property
    def turns(self) -> list[dict[str, Any]]:
        """What the page knows of its questions, as it keeps them for a reload."""
        self.page.evaluate("dispatchEvent(new Event('pagehide'))")
        return json.loads(self.page.evaluate("sessionStorage.getItem('folio.turns')"))

    def barriers(self) -> list[tuple[str, str]]:
        """What axe finds serious or worse: the rule, and the first element that breaks it."""
        from axe_playwright_python.sync_playwright import Axe

        violations = Axe().run(self.page).response["violations"]
        serious = [one for one in violations if one["impact"] in ("serious", "critical")]
        return [(one["id"], one["nodes"][0]["html"][:200]) for one in serious]

    def highlighted(self) -> str:
        """The characters that are marked in the source pane."""
        self.page.wait_for_selector("#source-text mark")
        return self.page.eval_on_selector_all("#source-text mark", "marks => marks.map(m => m.textContent).join('')")


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Watched]]:
    """Opens the page of a service in a fresh tab; at the end of the test, the tab must have behaved."""
    opened: list[tuple[Any, Watched]] = []

    def open_page(service: Service, ready: bool = True, **options: Any) -> Watched:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(15_000)
        watched = Watched(context.new_page(), service)
        opened.append((context, watched))
        watched.watch()
        watched.page.goto(service.url + "/")
        if ready:
            watched.page.wait_for_selector("#service[data-state='ready']")
        return watched

    yield open_page
    for context, _ in opened:
        context.close()
    for _, watched in opened:
        watched.check()


@pytest.fixture
def folio(service: Service, visit: Callable[..., Watched]) -> Watched:
    """A fresh tab at the page of a service without documents."""
    service.delete_all()
    return visit(service)


@pytest.fixture(scope="session")
def chapter() -> bytes:
    """A chapter of the handbook."""
    return (HANDBOOK / "02-paged-kv.md").read_bytes()
