"""Kinds of fields that several requests share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field


def _encodable(text: str) -> str:
    """Refuse lone surrogates, which JSON can carry and no encoding, tokenizer or database takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("it holds half of a surrogate pair, which is no character") from error
    return text


Text = Annotated[str, AfterValidator(_encodable)]
DocumentId = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
CollectionName = Annotated[Text, Field(min_length=1, max_length=255)]
