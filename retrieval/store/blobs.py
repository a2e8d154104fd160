"""Where bytes are kept besides SQL: in the data folder, or in a store that all machines reach (fsspec: S3 and others).

A blob is whole or absent, whatever happens: a folder's are written aside, synced and renamed; an object store's are
so by nature. Names are relative, with slashes: ``files/ab/abcd…``, ``uploads/JOB/0``, ``index/gen-…/manifest.json``.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from retrieval.common.files import in_words, replace_synced, sha256_of, sync_folder
from retrieval.errors import StoreUnavailable

CHUNK = 1 << 20


class Blobs(Protocol):
    """Named bytes. Every method may raise StoreUnavailable."""

    def put(self, name: str, data: bytes) -> None: ...

    def get(self, name: str) -> bytes:
        """Error: KeyError where there is none."""

    def size(self, name: str) -> int | None:
        """Bytes, or None where there is none."""

    def sha256(self, name: str) -> str | None:
        """Of the bytes, or None where there are none."""

    def age_s(self, name: str) -> float:
        """Seconds since it was written; 0 where there is none."""

    def names(self, folder: str) -> Iterator[str]:
        """Every blob under a folder; parts of those being written have a dot before their last name."""

    def remove(self, name: str) -> None:
        """Remove it, if it is there."""


def open_blobs(home: Path, url: str | None) -> Blobs:
    """The store at ``url`` (``s3://bucket/folder``, ``file:///mnt/shared``, …), by default the data folder itself.

    Error: StoreUnavailable for an unknown scheme, or one whose package is not installed.
    """
    return RemoteBlobs(url) if url else LocalBlobs(home)


class LocalBlobs:
    """Files in a folder, synced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, name: str, data: bytes) -> None:
        path = self._folder / name
        with in_words():
            made = not path.parent.is_dir()
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_synced(path, data)
            if made:
                sync_folder(path.parent.parent)

    def get(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError as error:
            raise KeyError(name) from error

    def size(self, name: str) -> int | None:
        path = self._folder / name
        return path.stat().st_size if path.is_file() else None

    def sha256(self, name: str) -> str | None:
        path = self._folder / name
        return sha256_of(path) if path.is_file() else None

    def age_s(self, name: str) -> float:
        try:
            return time.time() - (self._folder / name).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def names(self, folder: str) -> Iterator[str]:
        for path in sorted((self._folder / folder).rglob("*")):
            if path.is_file():
                yield path.relative_to(self._folder).as_posix()

    def remove(self, name: str) -> None:
        path = self._folder / name
        path.unlink(missing_ok=True)
        if name.startswith("uploads/"):
            with contextlib.suppress(OSError):  # not empty, or gone already
                path.parent.rmdir()


class RemoteBlobs:
    """Objects of any fsspec file system. Keys and endpoints come from the environment, as its package documents."""

    def __init__(self, url: str) -> None:
        self.name = url
        try:
            from fsspec.core import url_to_fs

            self._fs: Any
            self._fs, self._root = url_to_fs(url)
        except ImportError as error:
            raise StoreUnavailable(f"the store {url} needs a package that is not installed: {error}") from error
        except ValueError as error:
            raise StoreUnavailable(f"{url} is no store that can be opened: {error}") from error

    def put(self, name: str, data: bytes) -> None:
        with self._in_words():
            self._fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(self._path(name), data)

    def get(self, name: str) -> bytes:
        try:
            with self._in_words():
                return bytes(self._fs.cat_file(self._path(name)))
        except FileNotFoundError as error:
            raise KeyError(name) from error

    def put_file(self, name: str, path: Path) -> None:
        with self._in_words():
            self._fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(path), self._path(name))

    def get_file(self, name: str, path: Path) -> None:
        """Error: KeyError where there is none."""
        try:
            with self._in_words():
                self._fs.get_file(self._path(name), str(path))
        except FileNotFoundError as error:
            raise KeyError(name) from error

    def size(self, name: str) -> int | None:
        try:
            with self._in_words():
                return int(self._fs.size(self._path(name)))
        except FileNotFoundError:
            return None

    def sha256(self, name: str) -> str | None:
        digest = hashlib.sha256()
        try:
            with self._in_words(), self._fs.open(self._path(name), "rb") as file:
                while data := file.read(CHUNK):
                    digest.update(data)
        except FileNotFoundError:
            return None
        return digest.hexdigest()

    def age_s(self, name: str) -> float:
        try:
            with self._in_words():
                return time.time() - float(self._fs.modified(self._path(name)).timestamp())
        except FileNotFoundError:
            return 0.0

    def names(self, folder: str) -> Iterator[str]:
        with self._in_words():
            self._fs.invalidate_cache()
            found = self._fs.find(self._path(folder))
        for path in sorted(found):
            yield path[len(self._root) :].lstrip("/")

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._in_words():
            self._fs.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        """Whatever a store raises, as StoreUnavailable; a blob that is not there stays FileNotFoundError."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:  # each backend has exceptions of its own
            raise StoreUnavailable(f"the store {self.name} cannot be reached: {error}; try again later") from error
