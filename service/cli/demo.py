"""`make demo` and `make serve`: the whole path on the project's own handbook.

A data folder of its own, the handbook ingested, the index built, the service started on a free loopback port, two
questions asked over REST as streams (one by retrieval, one over a whole document), everything stopped again. With
``--serve`` the service stays up instead.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HANDBOOK = Path(__file__).parents[2] / "docs" / "handbook"
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Asked:
    """A question of the demonstration; `document` names the one to read whole, None for retrieval."""

    text: str
    document: str | None = None


QUESTIONS = (
    Asked("When is a journal row written, and in the same transaction as what change?"),
    Asked("What is a page of KV?", document="02-paged-kv.md"),
)


class DemoFailed(Exception):
    """One sentence on what went wrong."""


def main(arguments: list[str] | None = None) -> int:
    """Run the demonstration; returns 0 when every part of it worked."""
    parser = argparse.ArgumentParser(prog="python -m service.cli.demo", description=__doc__)
    parser.add_argument("--serve", action="store_true", help="keep the service up until Ctrl-C")
    parser.add_argument("--port", default="0", help="port to listen on; default: any free one")
    parser.add_argument("--model", default=None, help="another model than the embedded one")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="folio-demo-") as folder:
        home = Path(folder)
        try:
            documents = ingest(home)
            with service(home, options.port, options.model) as url:
                if options.serve:
                    return serve(url)
                for question in QUESTIONS:
                    ask(url, question, documents)
        except DemoFailed as failed:
            say(f"demo: {failed}")
            return 1
        except KeyboardInterrupt:
            return 130
    say("\nThe service has stopped; nothing of it is left.")
    return 0


def ingest(home: Path) -> dict[str, str]:
    """Read the handbook into a library and build its index; returns name → id of its chapters."""
    from retrieval.library import Library
    from service.logs import configure_logging

    configure_logging("warning")
    chapters = sorted(HANDBOOK.glob("*.md"))
    if not chapters:
        raise DemoFailed(f"there is no handbook in {HANDBOOK}; run this from a checkout of the project.")
    say(f"Ingesting {len(chapters)} chapters of the handbook …")
    began = time.monotonic()
    with Library.open(home) as library:
        results = library.ingest(chapters)
        failed = [result.error for result in results if result.status == "failed"]
        if failed:
            raise DemoFailed(f"the handbook cannot be ingested: {failed[0]}")
        report = library.build_index()
    took = time.monotonic() - began
    say(f"{report.documents} documents, {report.chunks} chunks, generation {report.generation} ({took:.1f} s)")
    return {result.name: str(result.id) for result in results}


@contextmanager
def service(home: Path, port: str, model: str | None) -> Iterator[str]:
    """A running `folio serve`, ready for questions; stopped by SIGTERM at the end. Gives its address."""
    import httpx

    command = [sys.executable, "-m", "service.cli", "--home", str(home), "serve", "--port", port]
    command += ["--model", model] if model else []
    environment = {**os.environ, "COLUMNS": "1000"}  # its lines are read here: they must not be wrapped
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        url = _address(process)
        say(f"The service starts at {url} …")
        deadline = time.monotonic() + START_TIMEOUT_S
        while httpx.get(f"{url}/readyz").status_code != 200:
            if process.poll() is not None or time.monotonic() > deadline:
                raise DemoFailed("the service did not become ready.")
            time.sleep(0.2)
        yield url
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        rest = process.stderr.read()
        process.stderr.close()
        if code != 0:
            raise DemoFailed(f"the service ended with code {code}: {rest.strip()}")


def ask(url: str, question: Asked, documents: dict[str, str]) -> None:
    """Ask one question as a stream; print the answer as it comes, its citations, its figures."""
    import httpx

    body: dict[str, Any] = {"question": question.text, "stream": True, "mode": "retrieval"}
    if question.document is not None:
        body |= {"mode": "long", "documents": [documents[question.document]]}
    say(f"\nQuestion: {question.text}")
    with httpx.stream("POST", f"{url}/v1/answer", json=body, timeout=600) as response:
        if response.status_code != 200:
            raise DemoFailed(f"the question was refused: {response.read().decode()}")
        for kind, data in events(response):
            if kind == "search_results":
                say(f"Mode: {data['mode']} ({data['mode_reason']}), {len(data['results'])} passage(s)")
                print("Answer: ", end="", flush=True)
            elif kind == "message":
                print(data["text"], end="", flush=True)
            elif kind == "citation":
                state = data["support"] if data["verified"] else "no longer in the text"
                say(f"\nCitation: {data['name']}, characters {data['start']} to {data['end']} ({state})")
                say(f"    {' '.join(data['cited_text'].split())}")
            elif kind == "stats":
                say(f"\nStatistics: {figures(data)}")
            elif kind == "error":
                raise DemoFailed(f"the answer broke off: {data['detail']}")
            elif kind == "done" and data["note"]:
                say(f"Note: {data['note']}")


def serve(url: str) -> int:
    """Keep the service up until Ctrl-C."""
    say(f"Folio is at {url}; the handbook is in it. Stop with Ctrl-C.")
    try:
        signal.pause()
    except KeyboardInterrupt:
        say("\nStopping …")
    return 0


def events(response: Any) -> Iterator[tuple[str, Any]]:
    """Name and data of each server-sent event."""
    name = "message"
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def figures(stats: dict[str, Any]) -> str:
    """The statistics of an answer on one line."""
    names = ("prompt_tokens", "cached_tokens", "output_tokens", "ttft_s", "decode_tokens_per_s")
    more = ("retrieval_ms", "acceptance_rate", "accepted_length")
    shown = {name: stats.get(name) for name in (*names, *more)}
    return ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items() if v is not None)


def say(line: str) -> None:
    """A line for whoever watches."""
    print(line, flush=True)


def _address(process: subprocess.Popen[str]) -> str:
    """The address that the service prints on its first line."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line.strip())
        if line.startswith("Folio is at "):
            return line.split()[3]
    raise DemoFailed(f"the service did not start: {' '.join(said)}")


if __name__ == "__main__":
    sys.exit(main())
