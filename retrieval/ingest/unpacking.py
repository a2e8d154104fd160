"""Zip archives among the files of an ingest: each file in one is a document of its own, named ``archive.zip/path``.

An archive is told by its name; it is opened in the parser's sandbox, as any file is. Archives within archives are
opened too, a few deep, and what all of one comes to together is bounded as the archive alone is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from retrieval.errors import OversizedFile, UnreadableFile
from retrieval.ingest.sources import Source, printable
from retrieval.parsing import Limits
from retrieval.parsing.sandbox import Sandbox

DEEPEST = 3
"""archives, one within another, that are opened"""


def is_archive(name: str) -> bool:
    return name.lower().endswith(".zip")


def unpacked(files: Iterable[Source], sandbox: Sandbox, limits: Limits) -> Iterator[Source]:
    """The files, each archive among them replaced by what is in it; one that cannot be opened stays, with its error."""
    for file in files:
        if not is_archive(file.name):
            yield file
            continue
        try:
            data = file.read(limits)
        except UnreadableFile as error:
            yield Source(file.name, error)
            continue
        yield from _Opening(sandbox, limits).files(file.name, data)


class _Opening:
    """An archive with those within it: what they may still come to together."""

    def __init__(self, sandbox: Sandbox, limits: Limits) -> None:
        self._sandbox = sandbox
        self._limits = limits

    def files(self, name: str, data: bytes, depth: int = 1) -> Iterator[Source]:
        if depth > DEEPEST:
            told = f"{name} lies in {DEEPEST} archives, one within another, and was not opened; unpack them"
            yield Source(name, OversizedFile(told))
            return
        try:
            with self._sandbox.unpacked(data, name, self._limits) as members:
                sizes = [member.stat().st_size for _, member in members if not isinstance(member, UnreadableFile)]
                self._limits = replace(
                    self._limits,
                    zip_entries=self._limits.zip_entries - len(members),
                    zip_expanded_bytes=self._limits.zip_expanded_bytes - sum(sizes),
                )
                for path, member in members:
                    label = printable(f"{name}/{path}")
                    if isinstance(member, UnreadableFile):
                        yield Source(label, member)
                    elif is_archive(label):
                        yield from self.files(label, member.read_bytes(), depth + 1)
                    else:
                        yield Source(label, member.read_bytes())
        except UnreadableFile as error:
            yield Source(name, error)
