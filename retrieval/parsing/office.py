"""DOCX, PPTX, XLSX, EPUB and CSV through markitdown, as Markdown; e-mail by the standard library.

The stored text is the Markdown, and spans refer to it. Slides of a presentation are its pages.
"""

from __future__ import annotations

import email
import email.policy
import re
import zipfile
from io import BytesIO
from typing import Any

from markitdown import StreamInfo
from markitdown.converters import (
    CsvConverter,
    DocxConverter,
    EpubConverter,
    PptxConverter,
    XlsxConverter,
)

from retrieval.errors import DamagedFile, EmptyFile, EncryptedFile, OversizedFile
from retrieval.parsing.document import ParsedDocument, join_pages, single_page, storable
from retrieval.parsing.html import html_to_text
from retrieval.parsing.limits import Limits
from retrieval.parsing.sniff import MEDIA_TYPES
from retrieval.parsing.text import decode

_CONVERTERS = {
    "docx": DocxConverter,
    "pptx": PptxConverter,
    "xlsx": XlsxConverter,
    "epub": EpubConverter,
    "csv": CsvConverter,
}
_SLIDE = re.compile(r"<!-- Slide number: \d+ -->\n?")
_HEADERS = ("Subject", "From", "To", "Cc", "Date")


def parse_office(kind: str, data: bytes, name: str, limits: Limits) -> ParsedDocument:
    """kind: a key of ``MEDIA_TYPES`` that markitdown reads. Errors: UnreadableFile and its kinds."""
    if kind != "csv":
        check_archive(data, name, limits)
    else:
        data = decode(data, name)[0].encode("utf-8")
    info = StreamInfo(extension=f".{kind}", mimetype=MEDIA_TYPES[kind], charset="utf-8", filename=None)
    text = storable(_CONVERTERS[kind]().convert(BytesIO(data), info).markdown)
    if not _SLIDE.sub("", text).strip():
        raise EmptyFile(f"{name} has no text; nothing to ingest")
    if kind == "pptx":
        slides = [slide.strip() for slide in _SLIDE.split(text)[1:]]
        return join_pages(slides or [text], MEDIA_TYPES[kind])
    return single_page(text, MEDIA_TYPES[kind])


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
    if expanded > limits.zip_expanded_bytes or expanded > limits.zip_ratio * max(len(data), 1):
        raise OversizedFile(
            f"{name} would expand from {len(data)} to {expanded} bytes, over the limit of "
            f"{limits.zip_expanded_bytes} bytes or {limits.zip_ratio} times its size; split it"
        )
    if any(entry.flag_bits & 1 for entry in entries):
        raise EncryptedFile(f"{name} is protected by a password; save a copy without one and ingest that")


def parse_email(data: bytes, name: str) -> ParsedDocument:
    """Headers that matter, then the plain body, else the HTML body as text. Attachments are named, not opened."""
    message = email.message_from_bytes(data, policy=email.policy.default)
    if not any(message[header] for header in _HEADERS):
        raise DamagedFile(f"{name} has none of the headers of an e-mail; if it is text, rename it to end in .txt")
    lines = [f"{header}: {message[header]}" for header in _HEADERS if message[header]]
    body = message.get_body(preferencelist=("plain", "html"))
    text = _body_text(body) if body is not None else ""
    attached = [part.get_filename() for part in message.iter_attachments() if part.get_filename()]
    if attached:
        lines.append("Attachments: " + ", ".join(map(str, attached)))
    return single_page(storable("\n".join(lines) + "\n\n" + text).strip(), MEDIA_TYPES["eml"])


def _body_text(body: Any) -> str:
    text = str(body.get_content())
    return html_to_text(text) if body.get_content_type() == "text/html" else text
