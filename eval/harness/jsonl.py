"""JSON lines: read as a stream that survives broken lines, written so that a kill loses at most one row."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from eval.errors import EvalError

_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Problem:
    """Something wrong with one line of a file."""

    line: int
    message: str

    def as_json(self) -> dict[str, Any]:
        return {"line": self.line, "message": self.message}


def read_jsonl(path: Path, problems: list[Problem]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, record) of every JSON object in the file, one line in memory at a time.

    Broken lines are appended to ``problems`` and skipped. An object followed by stray bytes (as ends the
    published yarn-mistral longbook_qa_chn) is kept, and the stray bytes are named.

    Raises:
        EvalError: the file is missing or cannot be read.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise EvalError(f"cannot read {path}: {error.strerror}", hint="Check the path.") from error
    with file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            record = _parse(raw, number, problems)
            if record is not None:
                yield number, record


def _parse(raw: bytes, number: int, problems: list[Problem]) -> dict[str, Any] | None:
    try:
        text = raw.decode("utf-8").strip().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        text = raw.decode("utf-8", errors="replace").strip()
        problems.append(Problem(number, f"bytes that are not UTF-8 at {error.start}, replaced"))
    try:
        record, end = _DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        problems.append(Problem(number, f"not JSON ({error.msg} at character {error.pos}): {text[:40]!r}, skipped"))
        return None
    if not isinstance(record, dict):
        problems.append(Problem(number, f"a {type(record).__name__} instead of an object, skipped"))
        return None
    if text[end:].strip():
        problems.append(Problem(number, f"stray text after the record, ignored: {text[end:].strip()[:40]!r}"))
    return record


class JsonlAppender:
    """Appends records, each handed to the system before `append` returns, and synced to the disk at the end.

    A partial line, as a kill in mid-write leaves, is cut off when the file is opened, and a write that
    fails (a full disk) is undone, so that the file goes on from whole records only.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._size = _cut_partial_line(path)

    def append(self, record: dict[str, Any]) -> None:
        """Write one record.

        Raises:
            EvalError: the disk refuses it; the records before it are intact.
        """
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", errors="surrogatepass")
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            os.ftruncate(self._descriptor, self._size)
            raise EvalError(
                f"cannot write to {self.path}: {error.strerror}; the records before this one are intact",
                hint="Make room, then run the same command again: it goes on where it stopped.",
            ) from error
        self._size += len(line)

    def close(self) -> None:
        os.fsync(self._descriptor)
        os.close(self._descriptor)

    def __enter__(self) -> JsonlAppender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _cut_partial_line(path: Path) -> int:
    """Truncate the file after its last newline; return its size."""
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        end = size
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline != -1:
                end = start + newline + 1
                break
            end = start
        if end != size:
            file.truncate(end)
        return end
