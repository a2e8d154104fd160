"""Zip files, which office files are: what they admit to is checked before anything is unpacked."""

from __future__ import annotations

import zipfile
import zlib
from io import BytesIO
from typing import Any
from xml.etree.ElementTree import ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from retrieval.errors import DamagedFile, EncryptedFile, OversizedFile
from retrieval.parsing.limits import Limits

Element = Any
"""of xml.etree, as defusedxml makes it: without entities, which a hostile file uses to grow without end"""


def read_xml(archive: zipfile.ZipFile, entry: str, name: str) -> Element | None:
    """The root of an entry of the file ``name``; None where it is not there. Error: DamagedFile."""
    try:
        return fromstring(archive.read(entry))
    except KeyError:
        return None
    except (ParseError, DefusedXmlException, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DamagedFile(f"{name} is damaged: {entry} within it cannot be read ({error}); save it anew") from error


def check_archive(data: bytes, name: str, limits: Limits) -> None:
    """Refuse a zip by what its directory admits to. Errors: OversizedFile, EncryptedFile, DamagedFile."""
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile as error:
        raise DamagedFile(f"{name} is cut off or damaged ({error}); get the file again") from error
    expanded = sum(entry.file_size for entry in entries)
    if len(entries) > limits.zip_entries:
        raise OversizedFile(f"{name} holds {len(entries)} files and the limit is {limits.zip_entries}; split it")
    most = min(limits.zip_expanded_bytes, max(limits.zip_small_bytes, limits.zip_ratio * len(data)))
    if expanded > most:
        raise OversizedFile(
            f"{name} would expand from {len(data)} to {expanded} bytes, over the limit of {most} bytes "
            f"({limits.zip_expanded_bytes}, or {limits.zip_ratio} times its size); split it"
        )
    if any(entry.flag_bits & 1 for entry in entries):
        raise EncryptedFile(f"{name} is protected by a password; save a copy without one and ingest that")
