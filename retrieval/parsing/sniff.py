"""What a file is, told by its first bytes; its name has to agree."""

from __future__ import annotations

import re
import zipfile
from io import BytesIO
from pathlib import PurePosixPath

from retrieval.errors import DamagedFile, EmptyFile, EncryptedFile, UnsupportedFile, WronglyNamedFile
from retrieval.parsing.encoding import wide_encoding

TEXT_SUFFIXES = {"", ".txt", ".text", ".log", ".rst", ".tex", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".xml"} | {
    ".ini", ".py", ".js", ".ts", ".java", ".c", ".h", ".cpp", ".go", ".rs", ".sh", ".sql", ".srt", ".vtt", ".org"
}  # fmt: skip
KIND_OF_SUFFIX = {
    ".md": "markdown", ".markdown": "markdown", ".html": "html", ".htm": "html", ".xhtml": "html", ".pdf": "pdf",
    ".docx": "docx", ".pptx": "pptx", ".xlsx": "xlsx", ".epub": "epub", ".csv": "csv", ".tsv": "csv", ".tab": "csv",
    ".eml": "eml", ".rtf": "rtf", ".odt": "odt", ".zip": "zip",
} | dict.fromkeys(TEXT_SUFFIXES, "text")  # fmt: skip
MEDIA_TYPES = {
    "text": "text/plain",
    "markdown": "text/markdown",
    "html": "text/html",
    "pdf": "application/pdf",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "epub": "application/epub+zip",
    "odt": "application/vnd.oasis.opendocument.text",
    "rtf": "application/rtf",
    "csv": "text/csv",
    "eml": "message/rfc822",
}
SUPPORTED = "text, Markdown, HTML, PDF, DOCX, PPTX, XLSX, ODT, RTF, EPUB, CSV, TSV, e-mail (.eml) and ZIP of these"

_MAGIC = [
    (b"%PDF-", "pdf"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "ole"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"\x7fELF", "a program"),
    (b"{\\rtf", "rtf"),
    (b"SQLite format 3\x00", "a database"),
]
_OLE = [
    ("__properties_version", "an Outlook message (.msg); save it as .eml, or print it to PDF"),
    ("WordDocument", "a document of Word 97 to 2003 (.doc); save it as DOCX"),
    ("Workbook", "a workbook of Excel 97 to 2003 (.xls); save it as XLSX"),
    ("PowerPoint Document", "a presentation of PowerPoint 97 to 2003 (.ppt); save it as PPTX"),
]
"""streams that tell what a compound file is"""
_UTF_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_HTML_TAG = re.compile(rb"<(!doctype\s+html|html|head|body)\b", re.I)


def sniff(data: bytes, name: str) -> str:
    """The kind of the file (a key of ``MEDIA_TYPES``, or ``zip`` for an archive of other files).

    Errors: EmptyFile, UnsupportedFile, WronglyNamedFile, EncryptedFile (an office file with a password),
    DamagedFile (a zip whose directory cannot be read).
    """
    suffix = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    if not data:
        raise EmptyFile(f"{name} is empty (0 bytes); nothing to ingest")
    content = _content_kind(data, name)
    named = KIND_OF_SUFFIX.get(suffix)
    if content == "text-like":
        if named is None:
            raise UnsupportedFile(
                f"{name}: files ending in {suffix!r} are not known; Folio reads {SUPPORTED}. "
                "If it is plain text, give it the ending .txt"
            )
        if named in ("pdf", "docx", "pptx", "xlsx", "epub", "odt", "rtf", "zip"):
            raise WronglyNamedFile(
                f"{name} is named as {named.upper()} but its content is text; rename it or export it again"
            )
        return "html" if suffix == "" and _begins_as_html(data[:4096]) else named
    if named != content and not (suffix == "" and content in MEDIA_TYPES):
        raise WronglyNamedFile(
            f"{name} is named {suffix or 'without an ending'} but its content is {content.upper()}; "
            f"rename it to end in .{content}"
        )
    return content


def _content_kind(data: bytes, name: str) -> str:
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            if kind == "zip":
                return _zip_kind(data, name)
            if kind == "ole":
                return _refuse_ole(data, name)
            if kind in ("pdf", "rtf"):
                return kind
            raise UnsupportedFile(f"{name} is {kind}, which has no text to read; Folio reads {SUPPORTED}")
    if b"%PDF-" in data[:1024]:
        return "pdf"
    if b"\x00" in data[:65536] and not data.startswith(_UTF_MARKS) and not wide_encoding(data):
        raise UnsupportedFile(f"{name} is a binary file of an unknown kind; Folio reads {SUPPORTED}")
    return "text-like"


def _begins_as_html(head: bytes) -> bool:
    """Whether a tag of HTML comes first, but for a declaration and comments."""
    head = head.lstrip()
    if head.startswith(b"<?xml"):
        head = head.partition(b">")[2].lstrip()
    while head.startswith(b"<!--"):
        head = head.partition(b"-->")[2].lstrip()
    return _HTML_TAG.match(head) is not None


def _zip_kind(data: bytes, name: str) -> str:
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            entries = set(archive.namelist())
            mimetype = _head_of(archive, "mimetype") if "mimetype" in entries else b""
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DamagedFile(
            f"{name} is cut off or damaged: its zip directory cannot be read ({error}); get the file again"
        ) from error
    for entry, kind in (("word/document.xml", "docx"), ("ppt/presentation.xml", "pptx"), ("xl/workbook.xml", "xlsx")):
        if entry in entries:
            return kind
    if "META-INF/container.xml" in entries:
        return "epub"
    if mimetype == MEDIA_TYPES["odt"].encode():
        return "odt"
    if mimetype.startswith(b"application/vnd.oasis.opendocument."):
        what = mimetype.rpartition(b".")[2].decode("ascii", "replace")[:40]
        raise UnsupportedFile(f"{name} is an OpenDocument {what}; save it as DOCX, XLSX or PPTX")
    return "zip"


def _head_of(archive: zipfile.ZipFile, entry: str) -> bytes:
    with archive.open(entry) as file:
        return file.read(128)


def _refuse_ole(data: bytes, name: str) -> str:
    if "EncryptedPackage".encode("utf-16-le") in data:
        raise EncryptedFile(f"{name} is protected by a password; save a copy without one and ingest that")
    for stream, what in _OLE:
        if stream.encode("utf-16-le") in data:
            raise UnsupportedFile(f"{name} is {what}")
    raise UnsupportedFile(f"{name} is in the old Office format; save it as DOCX, XLSX or PPTX")
