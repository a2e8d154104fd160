"""Bodies of OpenAI's routes: a client's null is as good as nothing, and what it adds of its own does no harm.

Frameworks send every field that they know, most of them null or empty, and send back what they were given with fields
of their own. A field that Folio does not know changes nothing and is told (`service.api.manners.note_ignored`); one
that it knows and cannot honour is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict, model_validator

from service.api.manners import note_ignored
from service.errors import InvalidRequest

NOTHING: tuple[Any, ...] = (None, [])
UNSUPPORTED: dict[str, Any] = {
    "allowed_token_ids": None,
    "bad_words": None,
    "chat_template": None,
    "continue_final_message": False,
    "guided_choice": None,
    "guided_grammar": None,
    "guided_json": None,
    "guided_regex": None,
    "length_penalty": 1,
    "min_tokens": 0,
    "skip_special_tokens": True,
    "tool_choice": None,
    "tools": None,
    "truncate_prompt_tokens": None,
    "use_beam_search": False,
}
"""Fields of OpenAI's and vLLM's that would change the answer, and the value of each that does not."""


class Lenient(BaseModel):
    """Takes fields that it does not know, and null or an empty list for one that may be left out."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        needed = {field.alias or name for name, field in cls.model_fields.items() if field.is_required()}
        return {name: value for name, value in data.items() if name in needed or value not in NOTHING}

    def unknown(self, place: str = "") -> Iterator[str]:
        """Names of the fields that are not known, of the parts too: ``messages[].annotations``."""
        for name in self.model_extra or {}:
            yield f"{place}{name}"
        for name in type(self).model_fields:
            value = getattr(self, name)
            parts, below = (value, f"{place}{name}[].") if isinstance(value, list) else ([value], f"{place}{name}.")
            for part in parts:
                if isinstance(part, Lenient):
                    yield from part.unknown(below)


def tell_unknown(request: Request, body: Lenient) -> None:
    """Name the fields that change nothing in the response. Raises InvalidRequest for one that ought to."""
    for name, value in (body.model_extra or {}).items():
        if name in UNSUPPORTED and value != UNSUPPORTED[name]:
            hint = "See structured_outputs." if name.startswith("guided_") else None
            raise InvalidRequest(f"{name} is not supported here.", hint=hint, param=name)
    note_ignored(request.scope, [name for name in body.unknown() if name not in UNSUPPORTED])
