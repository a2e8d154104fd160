"""A file's bytes to its text, with page spans, or one clear error."""

from __future__ import annotations

from retrieval.errors import OversizedFile, UnsupportedFile
from retrieval.parsing.document import PageProgress, ParsedDocument, page_at
from retrieval.parsing.limits import Limits
from retrieval.parsing.sniff import MEDIA_TYPES, sniff
from retrieval.parsing.text import parse_text

__all__ = ["MEDIA_TYPES", "Limits", "ParsedDocument", "check_size", "page_at", "parse", "sniff"]


def check_size(name: str, size: int, limits: Limits) -> None:
    """Refuse a file by its size alone, before it is read."""
    if size > limits.file_bytes:
        raise OversizedFile(
            f"{name} has {size / 2**20:.0f} MiB and the limit is {limits.file_bytes / 2**20:.0f} MiB; split it"
        )


def parse(
    data: bytes, name: str, limits: Limits | None = None, progress: PageProgress | None = None, *, depth: int = 0
) -> ParsedDocument:
    """Parse in this process. ``depth``: how many files this one lies within (an attachment of a mail).

    Errors: UnreadableFile and its kinds, each naming the file and the remedy.
    """
    limits = limits or Limits()
    check_size(name, len(data), limits)
    kind = sniff(data, name)
    parsed = _parse_kind(kind, data, name, limits, progress, depth)
    if len(parsed.text) > limits.text_chars:
        raise OversizedFile(f"{name} has {len(parsed.text)} characters and the limit is {limits.text_chars}; split it")
    return parsed


def _parse_kind(
    kind: str, data: bytes, name: str, limits: Limits, progress: PageProgress | None, depth: int
) -> ParsedDocument:
    # Parsers of rarer kinds are imported when first used: a plain-text library should start in no time.
    if kind in ("text", "markdown"):
        return parse_text(data, name, MEDIA_TYPES[kind])
    if kind == "zip":
        raise UnsupportedFile(f"{name} is a zip archive; unpack it and ingest what is in it")
    if kind == "html":
        from retrieval.parsing.html import parse_html

        return parse_html(data, name)
    if kind == "pdf":
        from retrieval.parsing.pdf.reader import parse_pdf

        return parse_pdf(data, name, limits, progress)
    if kind == "xlsx":
        from retrieval.parsing.office.spreadsheet import parse_spreadsheet

        return parse_spreadsheet(data, name, limits)
    if kind == "eml":
        from retrieval.parsing.mail import parse_mail

        return parse_mail(data, name, limits, parse, depth)
    if kind == "csv":
        from retrieval.parsing.delimited import parse_delimited

        return parse_delimited(data, name, MEDIA_TYPES[kind])
    if kind == "docx":
        from retrieval.parsing.office.word import parse_word

        return parse_word(data, name, limits)
    if kind == "pptx":
        from retrieval.parsing.office.slides import parse_slides

        return parse_slides(data, name, limits)
    if kind == "epub":
        from retrieval.parsing.epub import parse_epub

        return parse_epub(data, name, limits)
    if kind == "odt":
        from retrieval.parsing.office.opendocument import parse_opendocument

        return parse_opendocument(data, name, limits)
    from retrieval.parsing.office.rtf import parse_rtf

    return parse_rtf(data, name)
