"""E-mail: the headers that matter, the body, and every attachment that can be read, as parts of one document."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Callable
from email.message import EmailMessage
from typing import Any

from retrieval.errors import DamagedFile, UnreadableFile
from retrieval.parsing.builder import TextBuilder
from retrieval.parsing.document import ParsedDocument
from retrieval.parsing.encoding import decode
from retrieval.parsing.html import parse_markup
from retrieval.parsing.limits import Limits
from retrieval.parsing.sniff import MEDIA_TYPES

_HEADERS = ("Subject", "From", "To", "Cc", "Date")
_ENDINGS = {"message/rfc822": ".eml", "text/html": ".html", "text/plain": ".txt", "application/pdf": ".pdf"}
_WITHOUT_TEXT = {"image": "an image", "audio": "a recording", "video": "a film"}
_DEEPEST = 3
"""mails within mails that are opened"""


ParseAttachment = Callable[..., ParsedDocument]
"""`retrieval.parsing.parse`."""


def parse_mail(data: bytes, name: str, limits: Limits, parse: ParseAttachment, depth: int = 0) -> ParsedDocument:
    """Places are (part,) and what lies below it in an attachment. Error: DamagedFile for what is no mail."""
    message = email.message_from_bytes(data, policy=email.policy.default)
    headers = [(header, value) for header in _HEADERS if (value := _header(message, header))]
    if not headers:
        raise DamagedFile(f"{name} has none of the headers of an e-mail; if it is text, rename it to end in .txt")
    builder = TextBuilder()
    builder.add("\n".join(f"{header}: {value}" for header, value in headers), ("headers",))
    body = message.get_body(preferencelist=("plain", "html"))
    if body is not None:
        _write_body(builder, body, name)
    parts = list(message.iter_attachments()) if message.is_multipart() else [message] if body is None else []
    read = [_attach(builder, part, limits, parse, depth) for part in parts[: limits.attachments]]
    if len(parts) > limits.attachments:
        builder.notes.append(f"{len(parts)} attachments: those after the first {limits.attachments} were not read")
    if any(part.defects for part in message.walk()):
        builder.notes.append("the mail is malformed or cut off; what could be told apart of it was read")
    return builder.document(MEDIA_TYPES["eml"], unread_share=(len(parts) - sum(read)) / (len(parts) + 1))


def _attach(builder: TextBuilder, part: Any, limits: Limits, parse: ParseAttachment, depth: int) -> bool:
    """Whether the attachment was read; a picture, which has no text to miss, is only noted."""
    called = str(part.get_filename() or "unnamed" + _ENDINGS.get(part.get_content_type(), ""))
    builder.part()
    builder.add(f"Attachment: {called}")
    kind = part.get_content_maintype()
    if kind in _WITHOUT_TEXT:
        builder.notes.append(f"attachment {called} was not read: it is {_WITHOUT_TEXT[kind]}")
        return True
    try:
        if depth >= _DEEPEST:
            raise DamagedFile(f"{called} lies in more than {_DEEPEST} mails, one within another")
        inner = parse(_content(part), called, limits, depth=depth + 1)
    except UnreadableFile as error:
        builder.notes.append(f"attachment {called} was not read: {error}")
        return False
    builder.part()
    builder.embed(inner, f"attachment {called}")
    builder.notes += [f"attachment {called}: {said}" for said in inner.notes]
    return not inner.partial


def _content(part: Any) -> bytes:
    if part.get_content_type() == "message/rfc822":
        return bytes(part.get_payload(0).as_bytes()) if part.is_multipart() else b""
    return bytes(part.get_payload(decode=True) or b"")


def _header(message: EmailMessage, header: str) -> str:
    try:
        return " ".join(str(message[header] or "").split())
    except Exception:  # the standard library raises many kinds of error at hostile headers
        return ""


def _write_body(builder: TextBuilder, body: Any, name: str) -> None:
    data = bytes(body.get_payload(decode=True) or b"")
    decoded = decode(data, name, body.get_content_charset()) if data else None
    if decoded is None or not decoded.text.strip():
        return
    if decoded.doubtful:
        builder.notes.extend(decoded.notes())
    if body.get_content_type() != "text/html":
        builder.part()
        builder.add(decoded.text.strip(), ("body",))
    elif (shown := parse_markup(decoded.text)).text:
        builder.part()
        builder.embed(shown, "body")
