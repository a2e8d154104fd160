"""The files that an ingest is given, each under the name that is its identity in the collection.

A file in a folder is named by its path from that folder on (``books/old/bridge.txt``), one in an archive by its path
below the archive's name (``retrieval.ingest.unpacking``), any other by its own name. Two files that would get one name
are not taken for versions of one document: the second is refused.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from retrieval.errors import NameTaken, NoSuchFile, UnreadableFile
from retrieval.parsing import Limits, check_size
from retrieval.types import Upload

NAME_LENGTH = 255


@dataclass(frozen=True)
class Source:
    """A file to ingest: its label, and where its bytes are, or why they are not to be read."""

    name: str
    origin: Path | bytes | UnreadableFile

    def read(self, limits: Limits) -> bytes:
        """Error: UnreadableFile."""
        if isinstance(self.origin, UnreadableFile):
            raise self.origin
        if isinstance(self.origin, bytes):
            check_size(self.name, len(self.origin), limits)
            return self.origin
        try:
            if not self.origin.is_file():
                what = "there is no such file" if not self.origin.exists() else "it is not a regular file"
                raise NoSuchFile(f"{self.name}: {what} at {self.origin}")
            check_size(self.name, self.origin.stat().st_size, limits)
            return self.origin.read_bytes()
        except OSError as error:
            raise UnreadableFile(f"{self.name} cannot be read: {error.strerror}; check its permissions") from error


def sources(
    items: Iterable[str | os.PathLike[str] | Upload],
    *,
    follow_links: bool = False,
    unpack: Callable[[Iterator[Source]], Iterator[Source]] | None = None,
) -> Iterator[Source]:
    """Files as given; a folder stands for the files under it (hidden ones excepted).

    Args:
        follow_links: also read what links in a folder point to outside of it.
        unpack: replaces archives by what is in them.
    """
    found = _all(items, follow_links)
    taken: dict[str, Path | bytes] = {}
    for source in unpack(found) if unpack is not None else found:
        first = taken.setdefault(source.name, _identity(source.origin))
        if first != _identity(source.origin) and not isinstance(source.origin, UnreadableFile):
            yield Source(source.name, name_taken(source.name, first))
        else:
            yield source


def name_taken(name: str, first: object = None) -> NameTaken:
    """Of the second file of a name."""
    by = f" ({first})" if isinstance(first, Path) else ""
    return NameTaken(
        f"{name} is the name of another file of this ingest{by}; this one was not read. Ingest the folder that holds "
        "both, or put them into different collections"
    )


def clean_name(name: str) -> str:
    """A label from a name that may be hostile: its last component, printable, of bounded length."""
    return printable(PurePosixPath(name.replace("\\", "/")).name)


def _all(items: Iterable[str | os.PathLike[str] | Upload], follow_links: bool) -> Iterator[Source]:
    for item in items:
        if isinstance(item, Upload):
            yield Source(clean_name(item.name), item.data)
        elif Path(item).is_dir():
            yield from _in_folder(Path(item), follow_links)
        else:
            yield Source(clean_name(Path(item).name), Path(item))


def _in_folder(root: Path, follow_links: bool) -> Iterator[Source]:
    real = root.resolve()
    visited = set()
    for folder, inner, files in os.walk(root, followlinks=follow_links):
        inside = Path(folder).relative_to(root)
        visited.add(Path(folder).resolve())
        linked = [name for name in inner if Path(folder, name).is_symlink()]
        inner[:] = sorted(
            name for name in inner if not name.startswith(".") and Path(folder, name).resolve() not in visited
        )
        for name in sorted([*files, *([] if follow_links else linked)]):
            path = Path(folder, name)
            if name.startswith("."):
                continue
            label = printable("/".join((real.name, *inside.parts, name)))
            if path.is_symlink() and not follow_links and not path.resolve().is_relative_to(real):
                yield Source(label, NoSuchFile(f"{label} is a link out of the folder and was not followed"))
            elif path.is_file():
                yield Source(label, path)


def _identity(origin: Path | bytes | UnreadableFile) -> Path | bytes:
    if isinstance(origin, UnreadableFile):
        return b""
    return origin.resolve() if isinstance(origin, Path) else hashlib.sha256(origin).digest()


def printable(name: str) -> str:
    """A label on one line, of bounded length, whose ending stays."""
    shown = "".join(
        ch for ch in unicodedata.normalize("NFC", name) if unicodedata.category(ch) not in ("Cc", "Cf", "Cs")
    )
    shown = shown.strip() or "unnamed"
    if len(shown) <= NAME_LENGTH:
        return shown
    stem, dot, suffix = shown.rpartition(".")
    return f"{stem[: NAME_LENGTH - 17]}….{suffix}" if dot and len(suffix) < 16 else shown[:NAME_LENGTH]
