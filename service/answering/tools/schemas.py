"""Whether a JSON schema that refers to itself can ever be fulfilled; the compiler of grammars does not ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_STEPS = 20_000
"""A schema that takes longer to look through counts as one that nothing fits."""


def has_instance(schema: Any) -> bool:
    """Whether something finite fits a schema, as far as its references to itself go."""
    return _Search(schema).ends(schema, frozenset())


class _Search:
    """Looks for a way through a schema on which no reference needs itself."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: set[str] = set()  # references that end
        self._steps = 0

    def ends(self, schema: Any, within: frozenset[str]) -> bool:
        """within: the references that led here."""
        self._steps += 1
        if self._steps > MOST_STEPS:
            return False
        if not isinstance(schema, Mapping):
            return True
        return (
            self._reference_ends(schema.get("$ref"), within)
            and all(self.ends(part, within) for part in self._needed(schema))
            and all(
                any(self.ends(option, within) for option in schema[name])
                for name in ("anyOf", "oneOf")
                if schema.get(name)
            )
        )

    def _reference_ends(self, reference: Any, within: frozenset[str]) -> bool:
        if not isinstance(reference, str) or reference in self._known:
            return True
        if reference in within:
            return False
        if not self.ends(self._target(reference), within | {reference}):
            return False
        self._known.add(reference)
        return True

    @staticmethod
    def _needed(schema: Mapping[str, Any]) -> list[Any]:
        """Parts that every instance has."""
        properties, required = schema.get("properties"), schema.get("required")
        parts: list[Any] = list(schema.get("allOf") or ())
        if isinstance(properties, Mapping) and isinstance(required, list):
            parts += [properties[name] for name in required if name in properties]
        return parts + ([schema.get("items")] if schema.get("minItems") else [])

    def _target(self, reference: str) -> Any:
        """What a reference within the schema names; None for any other."""
        found = self._root
        for step in reference.removeprefix("#").split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            found = found.get(step) if isinstance(found, Mapping) else None
        return found
