"""Opening files in a child process that cannot take the service down with it.

A warm process (``retrieval.parsing.worker``) waits for files and forks a child for each, with limits on memory, CPU,
output, open files and time, without network, and without this process' environment (which may hold passwords). What
a hostile file can do is make its own parse fail. Texts are cut into chunks and pages of a PDF are drawn there too. This
process looks at no byte of a file but to hash and to store it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog

from retrieval import errors
from retrieval.embedding.tokens import Tokens
from retrieval.errors import DamagedFile, OversizedFile, ParserLimit, UnreadableFile
from retrieval.parsing import check_size
from retrieval.parsing.chunking import Chunk, ChunkingOptions
from retrieval.parsing.document import Heading, PageProgress, ParsedDocument, Table
from retrieval.parsing.limits import Limits
from retrieval.parsing.slices import Unread, joined, sliced
from retrieval.types import Box, Page, Place

log = structlog.get_logger(__name__)

HEADER_BYTES = 32 << 20
"""Of what is read of a file besides its text."""
SILENCE_S = 0.5
GRACE_S = 10.0
"""past its time limit the worker itself is taken for stuck"""


class Sandbox:
    """Parses files, as many at a time as it has workers. Thread-safe; ``close`` ends them."""

    def __init__(self, limits: Limits, workers: int = 1) -> None:
        self._limits = limits
        self._workers = [_Worker() for _ in range(workers)]
        self._free: queue.LifoQueue[_Worker] = queue.LifoQueue()  # the one that is warm, if any
        for worker in self._workers:
            self._free.put(worker)

    def parse(self, data: bytes, name: str, progress: PageProgress | None = None) -> ParsedDocument:
        """Errors: UnreadableFile and its kinds; whatever ``progress`` raises (the parse is then given up)."""
        check_size(name, len(data), self._limits)
        header, text = self._perform("parse", data, name, {}, progress)
        pages = [Page(*page) for page in header["pages"]]
        places = [Place(start, end, tuple(path)) for start, end, path in joined(header["places"])]
        return ParsedDocument(
            text.decode("utf-8"),
            pages,
            header["media_type"],
            header["notes"],
            places,
            Unread(header["tables"], _table),
            header["unread_share"],
            headings=Unread(header["headings"], Heading),
        )

    def chunk(
        self,
        name: str,
        parsed: ParsedDocument,
        tokens: Tokens,
        options: ChunkingOptions,
        progress: PageProgress | None = None,
    ) -> list[Chunk]:
        """``retrieval.parsing.chunking.chunk`` of what was parsed. Errors as of ``parse``."""
        arguments = {
            "pages": [[page.number, page.start, page.end] for page in parsed.pages],
            "tables": sliced(parsed.tables),
            "headings": sliced(parsed.headings),
            "options": asdict(options),
        }
        header, _ = self._perform("chunk", parsed.text.encode("utf-8"), name, arguments, progress, tokens)
        return [
            Chunk(start, end, page, count, parsed.text[start:end], context)
            for start, end, page, count, context in header["chunks"]
        ]

    def boxes(self, data: bytes, name: str, pages: Sequence[Page], text: str, start: int, end: int) -> list[Box]:
        """``retrieval.parsing.boxes.boxes``. Errors: UnreadableFile and its kinds."""
        spans = [[page.number, page.start, page.end] for page in pages]
        header, _ = self._perform("boxes", data, name, {"pages": spans, "text": text, "start": start, "end": end})
        return [Box(*box) for box in header["boxes"]]

    def page_image(self, data: bytes, name: str, number: int, width: int) -> bytes:
        """``retrieval.parsing.pdf.boxes.page_image``. Errors: NotFound; UnreadableFile and its kinds."""
        return self._perform("page_image", data, name, {"number": number, "width": width})[1]

    @contextlib.contextmanager
    def unpacked(self, data: bytes, name: str, limits: Limits) -> Iterator[list[tuple[str, Path | UnreadableFile]]]:
        """(path in the archive, the file while the context lasts, or why it was not unpacked) of each of an archive.

        Args:
            limits: of the archive, instead of the sandbox's own.
        Errors: UnreadableFile and its kinds.
        """
        with self._workplace() as folder:
            header, _ = self._perform("unpack", data, name, {"folder": str(folder)}, limits=limits)
            files: list[tuple[str, Path | UnreadableFile]] = [
                (path, DamagedFile(f"{name}/{path} was not read: {why}") if why else folder / str(number))
                for number, (path, why) in enumerate(header["files"])
            ]
            yield files

    def _perform(
        self,
        task: str,
        data: bytes,
        name: str,
        arguments: dict[str, Any],
        progress: PageProgress | None = None,
        tokens: Tokens | None = None,
        limits: Limits | None = None,
    ) -> tuple[dict[str, Any], bytes]:
        """One of the worker's tasks: its header and payload."""
        with self._worker() as worker, self._workplace() as folder:
            (folder / "in").write_bytes(data)
            (folder / "arguments").write_text(json.dumps(arguments), encoding="utf-8")
            request = {
                "task": task,
                "name": name,
                "folder": str(folder),
                "limits": asdict(limits or self._limits),
            }
            deadline = time.monotonic() + self._limits.parse_seconds + self._limits.ocr_seconds + GRACE_S
            try:
                ending = worker.ask(request, deadline, progress, tokens)
            except BaseException:
                worker.kill()
                raise
            if ending is None:
                worker.kill()
                raise ParserLimit(f"{name}: the parser stopped answering and was ended")
            return self._result(folder, name, len(data), ending)

    def close(self) -> None:
        for _ in self._workers:
            self._free.get()  # what is under way ends first
        for worker in self._workers:
            worker.kill()
            self._free.put(worker)

    @contextlib.contextmanager
    def _worker(self) -> Iterator[_Worker]:
        worker = self._free.get()
        try:
            yield worker
        finally:
            self._free.put(worker)

    @staticmethod
    @contextlib.contextmanager
    def _workplace() -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(prefix="folio-parse-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _result(self, folder: Path, name: str, size: int, ending: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        if ending["timed_out"] or ending["signal"] == signal.SIGXCPU:
            raise ParserLimit(f"{name} took longer than {self._limits.cpu_seconds(size):.0f} s to parse; split it")
        if ending["signal"] == signal.SIGXFSZ:
            raise OversizedFile(f"{name} has more than {self._limits.text_chars} characters of text; split it")
        try:
            header, _, payload = (folder / "out").read_bytes().partition(b"\n")
            if len(header) > HEADER_BYTES:
                raise OversizedFile(f"{name} has too many pages, headings, rows or cells to be kept; split it")
            result = json.loads(header)
        except (OSError, ValueError):
            limit = self._limits.parse_memory_bytes >> 20
            raise DamagedFile(
                f"{name} broke its parser (signal {ending['signal']}, status {ending['exit']}): "
                f"it is damaged, or needs more than {limit} MiB to read"
            ) from None
        if "error" in result:
            kind = getattr(errors, result["error"], UnreadableFile)
            raise kind(result["message"])
        return result, payload


def _table(header: str, rows: list[str]) -> Table:
    return Table(header, [(start, end) for start, end in joined(rows)])


class _Worker:
    """One process of ``retrieval.parsing.worker``: started when first asked, and again after it had to be ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._tokens: Tokens | None = None

    def ask(
        self, request: dict[str, Any], deadline: float, progress: PageProgress | None, tokens: Tokens | None
    ) -> dict[str, Any] | None:
        """How the child ended: {"exit", "signal", "timed_out"}; None when nothing was heard until the deadline."""
        process = self._running()
        if tokens is not None and tokens is not self._tokens:
            self._send(process, {"tokens": tokens.saved()})
            self._tokens = tokens
        self._send(process, request)
        far = [0, 1]
        for line in self._lines(process, deadline):
            message = json.loads(line) if line else {"progress": far}
            if "progress" not in message:
                return dict(message)
            far = message["progress"]
            if progress is not None:
                progress(*far)
        return None

    @staticmethod
    def _send(process: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(message).encode() + b"\n")
        process.stdin.flush()

    def _lines(self, process: subprocess.Popen[bytes], deadline: float) -> Iterator[bytes]:
        """What it says; b"" whenever it says nothing for a while, so that whoever waits may give up."""
        assert process.stdout is not None
        buffer = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0:
                if not selector.select(min(SILENCE_S, left)):
                    yield b""
                    continue
                received = os.read(process.stdout.fileno(), 1 << 16)
                if not received:
                    return
                *lines, buffer = (buffer + received).split(b"\n")
                yield from lines

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            root = str(Path(__file__).resolve().parents[2])
            environment = {
                "PATH": os.environ.get("PATH", ""),
                "PYTHONPATH": root,
                "PYTHONIOENCODING": "utf-8",
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_NUM_THREADS": "1",
                "TOKENIZERS_PARALLELISM": "false",
            }
            self._tokens = None
            self._process = subprocess.Popen(
                [sys.executable, "-m", "retrieval.parsing.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
            log.debug("parser started", pid=self._process.pid)
        return self._process

    def kill(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process = None
