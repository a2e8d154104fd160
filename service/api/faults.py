"""What is wrong with a request that does not fit its schema, in the words of its sender.

pydantic tries every branch of a union and names each in the place of its fault; the sender knows only the names that
stand in the body. The branch that was meant is the one whose faults lie deepest in what was sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import FormData

from service.fields import reason, sentence

Place = tuple[str | int, ...]
SOURCES = ("body", "query", "path", "header", "cookie")
"""What pydantic's places begin with."""


@dataclass(frozen=True)
class Fault:
    """One field, as its sender wrote it (``messages.0.role``), and what is wrong with it."""

    param: str
    reason: str
    sentence: str


def faults(found: Sequence[Mapping[str, Any]], body: Any) -> list[Fault]:
    """The faults of a RequestValidationError, those of branches that were not meant left out."""
    groups: dict[Place, list[tuple[Place, Mapping[str, Any]]]] = {}
    for fault in found:
        place, union = _walk(fault, body)
        groups.setdefault(place if union is None else union, []).append((place, fault))
    return [_meant(group) for group in groups.values()]


def _meant(group: Sequence[tuple[Place, Mapping[str, Any]]]) -> Fault:
    """The fault of the branch that fits best; where none does, what each would take."""
    place = max((place for place, _ in group), key=len)
    here = [fault for other, fault in group if other == place]
    fitting = [fault for fault in here if not fault["type"].endswith("_type")]
    name = ".".join(map(str, place))
    if fitting:
        return Fault(name, reason(fitting[0]), sentence(name or "The body", fitting[0]))
    kinds = dict.fromkeys(reason(fault).removeprefix("must be ") for fault in here)
    either = f"must be {' or '.join(kinds)}"
    return Fault(name, either, f"{name or 'The body'} {either}.")


def _walk(fault: Mapping[str, Any], body: Any) -> tuple[Place, Place | None]:
    """The part of a fault's place that stands in the body, and the place of the first union that it leads through.

    What is neither a key nor an index of what was sent is the name of a branch, but for a missing field, which is last.
    """
    location = list(fault["loc"])
    source = location.pop(0) if location and location[0] in SOURCES else ""
    if source != "body" or isinstance(body, FormData | None):
        return tuple(location), None
    place: list[str | int] = []
    union: Place | None = None
    here = body
    for number, part in enumerate(location):
        missing = fault["type"] == "missing" and number == len(location) - 1
        if isinstance(here, Mapping) and (part in here or missing):
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
        else:
            union = tuple(place) if union is None else union
            continue
        place.append(part)
    return tuple(place), union
