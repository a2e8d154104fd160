"""Bodies of OpenAI's routes: a client's null is as good as nothing, and what it adds of its own does no harm.

Frameworks send every field that they know, most of them null or empty, and send back what they were given with fields
of their own. A field that Folio does not know changes nothing and is told (`service.api.manners.note_ignored`); one
that it knows and cannot honour is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

NOTHING: tuple[Any, ...] = (None, [])


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
