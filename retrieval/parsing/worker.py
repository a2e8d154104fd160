"""The process behind ``retrieval.parsing.sandbox``: for every line of its input, one file, opened in a forked child.

It has no threads, so that it may fork; it ends when its input does. A line may also teach it the tokenizer by which
texts are cut into chunks, which its children then have.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from retrieval.embedding.tokens import Tokens
from retrieval.errors import NotFound, UnreadableFile
from retrieval.parsing import parse
from retrieval.parsing.chunking import ChunkingOptions, chunk
from retrieval.parsing.document import Heading, Table, shown_notes
from retrieval.parsing.limits import Limits
from retrieval.parsing.pdf import ocr
from retrieval.parsing.slices import joined, sliced
from retrieval.types import Page

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_POLL_S = 0.002
_tokens: Tokens | None = None


def main() -> None:
    with contextlib.suppress(ImportError):
        import retrieval.parsing.pdf.boxes  # noqa: F401  (imported before the fork: children start with it)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    gc.freeze()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "tokens" in request:
            _learn(request["tokens"])
            continue
        limits = Limits(**request["limits"])
        _preload(request["name"])
        child = os.fork()
        if child == 0:
            _run_child(request, Path(request["folder"]), limits)
        _tell(_wait(child, limits.parse_seconds + (limits.ocr_seconds if ocr.available() else 0)))


def _learn(saved: str) -> None:
    global _tokens
    _tokens = Tokens.restored(saved)
    gc.freeze()


def _preload(name: str) -> None:
    """Some parsers are slow to import; once the first such file has come, every child has its own."""
    suffix = PurePosixPath(name).suffix.lower()
    with contextlib.suppress(ImportError):
        if suffix == ".xlsx":
            import retrieval.parsing.office.spreadsheet
        elif suffix == ".pptx":
            import retrieval.parsing.office.slides
        elif suffix == ".eml":
            import retrieval.parsing.mail  # noqa: F401
        elif suffix not in ("", ".pdf", ".html"):
            import chardet  # noqa: F401


def _wait(child: int, seconds: float) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    timed_out = False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return {"exit": max(code, 0), "signal": max(-code, 0), "timed_out": timed_out}
        if time.monotonic() > deadline and not timed_out:
            timed_out = True
            os.kill(child, signal.SIGKILL)
        time.sleep(_POLL_S)


def _parse(data: bytes, name: str, limits: Limits) -> tuple[dict[str, Any], bytes]:
    parsed = parse(data, name, limits, lambda done, total: _tell({"progress": [done, total]}))
    pages = [[page.number, page.start, page.end] for page in parsed.pages]
    header = {
        "pages": pages,
        "media_type": parsed.media_type,
        "notes": shown_notes(parsed.notes),
        "places": sliced(parsed.places),
        "tables": sliced([[table.header, sliced(table.rows)] for table in parsed.tables]),
        "headings": sliced(parsed.headings),
        "unread_share": parsed.unread_share,
    }
    return header, parsed.text.encode("utf-8")


def _chunk(
    data: bytes,
    name: str,
    limits: Limits,
    pages: list[list[int]],
    tables: list[str],
    headings: list[str],
    options: dict[str, Any],
) -> tuple[dict[str, Any], bytes]:
    assert _tokens is not None
    found = chunk(
        data.decode("utf-8"),
        [Page(*page) for page in pages],
        _tokens.starts,
        ChunkingOptions(**options),
        [Table(said, [(start, end) for start, end in joined(rows)]) for said, rows in joined(tables)],
        [Heading(*heading) for heading in joined(headings)],
    )
    return {"chunks": [[one.start, one.end, one.page, one.tokens, one.context] for one in found]}, b""


def _boxes(
    data: bytes, name: str, limits: Limits, pages: list[list[int]], text: str, start: int, end: int
) -> tuple[dict[str, Any], bytes]:
    from retrieval.parsing.pdf.boxes import boxes

    found = boxes(data, name, [Page(*page) for page in pages], text, start, end)
    return {"boxes": [list(asdict(box).values()) for box in found]}, b""


def _unpack(data: bytes, name: str, limits: Limits, folder: str) -> tuple[dict[str, Any], bytes]:
    from retrieval.parsing.bundle import unpack

    return {"files": unpack(data, name, limits, Path(folder))}, b""


def _page_image(data: bytes, name: str, limits: Limits, number: int, width: int) -> tuple[dict[str, Any], bytes]:
    from retrieval.parsing.pdf.boxes import page_image

    return {}, page_image(data, name, number, width)


TASKS: dict[str, Callable[..., tuple[dict[str, Any], bytes]]] = {
    "parse": _parse,
    "chunk": _chunk,
    "boxes": _boxes,
    "page_image": _page_image,
    "unpack": _unpack,
}
"""What a child does: (file, its name, limits, arguments) → (header, payload)."""


def _run_child(request: dict[str, Any], folder: Path, limits: Limits) -> None:
    """Never returns."""
    name = request["name"]
    try:
        _confine(limits, (folder / "in").stat().st_size)
        data = (folder / "in").read_bytes()
        header: dict[str, Any]
        payload = b""
        try:
            arguments = json.loads((folder / "arguments").read_bytes())
            header, payload = TASKS[request["task"]](data, name, limits, **arguments)
        except (UnreadableFile, NotFound) as error:
            header = {"error": type(error).__name__, "message": str(error)}
        except MemoryError:
            limit = limits.parse_memory_bytes >> 20
            header = {"error": "ParserLimit", "message": f"{name} needs more than {limit} MiB to read; split it"}
        except RecursionError:
            header = {"error": "DamagedFile", "message": f"{name} is nested too deeply to be read; save it anew"}
        except Exception as error:
            cause = f"{type(error).__name__}: {str(error)[:200]}"
            header = {"error": "DamagedFile", "message": f"{name} cannot be read ({cause}); save it anew"}
        (folder / "out").write_bytes(json.dumps(header).encode() + b"\n" + payload)
    finally:
        os._exit(0)


def _confine(limits: Limits, size: int) -> None:
    memory = limits.parse_memory_bytes + _data_bytes()
    output = 4 * limits.text_chars + (1 << 20)
    for what, limit, more in (
        (resource.RLIMIT_DATA, memory, limits.ocr_memory_bytes),
        (resource.RLIMIT_CPU, int(limits.cpu_seconds(size)) + 1, int(limits.ocr_seconds)),
        (resource.RLIMIT_FSIZE, output, 0),
        (resource.RLIMIT_NOFILE, 64, 0),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(what, (limit, limit + more if ocr.available() else limit))
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    # No network where the kernel lets an ordinary process give it up; no parser of ours opens a connection anyway.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def _data_bytes() -> int:
    """What this process holds already, shared with its parent."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize() if _tokens else 0
    except OSError:  # Linux alone has it
        return 0


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(AttributeError):  # Linux alone has it
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _tell(message: dict[str, Any]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
