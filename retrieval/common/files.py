"""Files that are whole or absent, whatever happens: written aside, synced, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from retrieval.errors import IndexCorrupt, StoreUnavailable


@contextlib.contextmanager
def in_words() -> Iterator[None]:
    """A full or failing disk as StoreUnavailable, which names the file."""
    try:
        yield
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise StoreUnavailable(
            f"cannot write{where}: {error.strerror}; free some space or mend it, and try again"
        ) from error


Sink = Callable[[bytes], object]


def write_synced(path: Path, write: Callable[[Sink], object]) -> tuple[str, int]:
    """Create ``path`` with what ``write`` sends to its sink, and sync it. Returns (sha256, bytes)."""
    digest = hashlib.sha256()
    size = 0
    with path.open("wb") as file:

        def sink(data: bytes) -> None:
            nonlocal size
            digest.update(data)
            size += len(data)
            file.write(data)

        write(sink)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest(), size


def sync_written(path: Path) -> tuple[str, int]:
    """Sync a file that a library has written. Returns (sha256, bytes)."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_synced(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old file or the new one, never a part."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(aside, lambda sink: sink(data))
        os.replace(aside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
    sync_folder(path.parent)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_hashes(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare a folder with what its manifest says of it, {name: {"sha256", "bytes"}}.

    Raises:
        IndexCorrupt: a file is missing, cannot be read or has changed; it names the file.
    """
    for name, expected in files.items():
        path = folder / name
        try:
            whole = path.stat().st_size == expected["bytes"] and sha256_of(path) == expected["sha256"]
        except OSError as error:
            raise IndexCorrupt(f"{path} cannot be read: {error.strerror}") from error
        if not whole:
            raise IndexCorrupt(f"{path} was altered or cut off (its sha256 or size differs)")
