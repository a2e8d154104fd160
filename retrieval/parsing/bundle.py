"""A zip archive of documents unpacked, within bounds: runs in the parser's sandbox alone."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

from retrieval.errors import EmptyFile, UnsupportedFile
from retrieval.parsing.archives import check_archive
from retrieval.parsing.limits import Limits
from retrieval.parsing.sniff import sniff

_BLOCK = 1 << 20
_IN_UTF8 = 0x800
"""flag of an entry whose name says so itself"""


def unpack(data: bytes, name: str, limits: Limits, folder: Path) -> list[tuple[str, str]]:
    """Write each file of the archive into ``folder`` as ``0``, ``1``, …

    Returns (its path in the archive, "" or why it was not unpacked) of each, in the archive's order. Folders and hidden
    files are left out, as those of a folder are. Errors: UnreadableFile and its kinds.
    """
    if sniff(data, name) != "zip":
        raise UnsupportedFile(f"{name} is no zip archive of documents")
    check_archive(data, name, limits)
    found: list[tuple[str, str]] = []
    with zipfile.ZipFile(BytesIO(data)) as archive:
        for entry in archive.infolist():
            path = _path(entry)
            if path and not entry.is_dir():
                found.append((path, _write(archive, entry, folder / str(len(found)), limits)))
    if not found:
        raise EmptyFile(f"{name} holds no files; nothing to ingest")
    return found


def _path(entry: zipfile.ZipInfo) -> str:
    """Where the entry lies, below the archive whatever it says; "" for a hidden one."""
    named = entry.filename
    if not entry.flag_bits & _IN_UTF8:  # the library took it for cp437; most programs of today write UTF-8
        with contextlib.suppress(UnicodeError):
            named = named.encode("cp437").decode("utf-8")
    steps = [step for step in named.replace("\\", "/").split("/") if step not in ("", ".", "..")]
    hidden = any(step.startswith(".") for step in steps) or steps[:1] == ["__MACOSX"]
    return "" if hidden else "/".join(steps)


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, to: Path, limits: Limits) -> str:
    """Why the entry cannot be unpacked, "" where it was."""
    if entry.file_size > limits.file_bytes:
        return (
            f"it has {entry.file_size / 2**20:.0f} MiB and the limit is {limits.file_bytes / 2**20:.0f} MiB; split it"
        )
    try:
        with archive.open(entry) as packed, to.open("wb") as file:
            while block := packed.read(_BLOCK):
                file.write(block)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        to.unlink(missing_ok=True)
        return f"it cannot be unpacked ({error}); get the archive again"
    return ""
