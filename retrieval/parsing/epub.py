"""EPUB: the chapters in reading order, a page a chapter."""

from __future__ import annotations

import posixpath
import re
import zipfile
from io import BytesIO
from urllib.parse import unquote

from retrieval.errors import DamagedFile, EmptyFile, EncryptedFile, UnreadableFile
from retrieval.parsing.archives import check_archive, read_xml
from retrieval.parsing.builder import TextBuilder
from retrieval.parsing.document import ParsedDocument
from retrieval.parsing.encoding import decode
from retrieval.parsing.html import html_to_text, parse_markup
from retrieval.parsing.limits import Limits
from retrieval.parsing.sniff import MEDIA_TYPES

_CONTAINER = "{urn:oasis:names:tc:opendocument:xmlns:container}"
_OPF = "{http://www.idpf.org/2007/opf}"
_TITLE = re.compile(r"<(h[1-3]|title)\b[^<>]*+>((?:[^<]|<(?!/?(?:h[1-3]|title)\b))*+)</\1>", re.I)
_LONGEST_TITLE = 100


def parse_epub(data: bytes, name: str, limits: Limits) -> ParsedDocument:
    """Errors: UnreadableFile and its kinds."""
    check_archive(data, name, limits)
    builder = TextBuilder()
    unread = 0
    with zipfile.ZipFile(BytesIO(data)) as archive:
        chapters = _chapters(archive, name)
        locked = _locked(archive, name)
        for number, path in enumerate(chapters, 1):
            try:
                if path in locked:
                    raise EncryptedFile("it is encrypted")
                markup = decode(archive.read(path), path).text
            except (KeyError, zipfile.BadZipFile, UnreadableFile) as error:
                unread += 1
                builder.notes.append(f"chapter {number} ({path}) was not read: {error}")
                continue
            chapter = parse_markup(markup)
            if chapter.text:
                builder.part()
                builder.begin_page()
                builder.embed(chapter, f"chapter {number}", *_title(markup))
    if unread == len(chapters) > 0 and locked:
        raise EncryptedFile(f"{name} is protected against copying; ingest a copy without protection")
    if not builder.length:
        raise EmptyFile(f"{name} has no text; nothing to ingest")
    return builder.document(MEDIA_TYPES["epub"], unread_share=unread / max(len(chapters), 1))


def _chapters(archive: zipfile.ZipFile, name: str) -> list[str]:
    """Paths of the chapters within the archive, in reading order."""
    container = read_xml(archive, "META-INF/container.xml", name)
    rootfile = container.find(f".//{_CONTAINER}rootfile") if container is not None else None
    package = rootfile.get("full-path", "") if rootfile is not None else ""
    root = read_xml(archive, package, name) if package else None
    if root is None:
        raise DamagedFile(f"{name} does not say where its chapters are; get the file again")
    hrefs = {item.get("id"): item.get("href", "") for item in root.iter(_OPF + "item")}
    folder = posixpath.dirname(package)
    return [
        posixpath.normpath(posixpath.join(folder, unquote(hrefs[reference.get("idref")])))
        for reference in root.iter(_OPF + "itemref")
        if reference.get("idref") in hrefs
    ]


def _locked(archive: zipfile.ZipFile, name: str) -> set[str]:
    root = read_xml(archive, "META-INF/encryption.xml", name)
    references = root.iter("{http://www.w3.org/2001/04/xmlenc#}CipherReference") if root is not None else ()
    return {unquote(reference.get("URI", "")) for reference in references}


def _title(markup: str) -> list[str]:
    found = {match[1].lower(): html_to_text(match[2]) for match in reversed(list(_TITLE.finditer(markup[:65536])))}
    title = next((found[tag] for tag in ("h1", "h2", "h3", "title") if found.get(tag)), "")
    return [" ".join(title.split())[:_LONGEST_TITLE]] if title else []
