"""Kinds of fields that requests share, and what is wrong with a value, in the words of every front end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from service.errors import InvalidRequest

SHOWN_TYPES = ("literal_error", "greater_than", "greater_than_equal", "less_than", "less_than_equal")
"""Faults whose sentence ends with the value itself: a word or a number, never a text of the user's."""
WORDS = {"Input should": "must", "greater than or equal to": "at least", "less than or equal to": "at most"}
"""pydantic's, and ours"""
WHOLE = {
    "model_attributes_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "dict_type": "must be a JSON object",
    "list_type": "must be a list",
    "string_type": "must be a string",
    "extra_forbidden": "is not known here",
    "missing": "is missing",
    "none_required": "is not supported here",
}
"""Sentences that are ours alone, by the kind of fault."""


class Strict(BaseModel):
    """Refuses fields that it does not know, and numbers that are none."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def encodable(text: str) -> str:
    """Refuse lone surrogates, which JSON can carry and no encoding, tokenizer or database takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("it holds half of a surrogate pair, which is no character") from error
    return text


Text = Annotated[str, AfterValidator(encodable)]
DocumentId = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
CollectionName = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(encodable)]
Temperature = Annotated[float, Field(ge=0, le=2, description="0 is greedy.")]
TopP = Annotated[float, Field(gt=0, le=1, description="Keep the likeliest tokens that together reach this.")]
DrafterName = Annotated[str, Field(max_length=255, description="NAME[:key=value,…]; never changes the tokens.")]
PolicyName = Annotated[str, Field(max_length=255, description="Sparse attention policy, NAME[:key=value,…].")]


def reason(fault: Mapping[str, Any]) -> str:
    """What is wrong with a value: one fault of a ValidationError, in words and without a full stop."""
    message = str(fault["msg"]).removeprefix("Value error, ").rstrip(".")
    if fault["type"] in WHOLE:
        return WHOLE[fault["type"]]
    if "UploadFile" in message:  # and a class of the framework's
        return "must be a file"
    for theirs, ours in WORDS.items():
        message = message.replace(theirs, ours, 1)
    shown = f", not {fault['input']!r:.60}" if fault["type"] in SHOWN_TYPES else ""
    return message[:1].lower() + message[1:] + shown


def sentence(name: str, fault: Mapping[str, Any]) -> str:
    """The fault of the field that the user knows by this name."""
    why = reason(fault)
    return f"{name} {why}." if why.startswith(("must ", "is ")) else f"{name}: {why}."


def refusal(error: ValidationError, name: Callable[[Sequence[int | str]], str]) -> InvalidRequest:
    """The first fault as users read it; `name` says how they wrote the field at a place."""
    first = error.errors(include_url=False)[0]
    named = name(first["loc"])
    return InvalidRequest(sentence(named, first), param=named)
