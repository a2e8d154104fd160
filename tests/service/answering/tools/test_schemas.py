"""Schemas that refer to themselves: those that end somewhere, and those that never do."""

from __future__ import annotations

from typing import Any

import pytest

from service.answering.tools.schemas import has_instance


def node(**more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"next": {"$ref": "#"}}, **more}


LIST = {"type": "array", "items": {"$ref": "#"}}


@pytest.mark.parametrize(
    ("schema", "ends"),
    [
        (node(), True),
        (node(required=["next"]), False),
        ({"properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["next"]}, True),
        ({"properties": {"next": {"oneOf": [{"$ref": "#"}, {"$ref": "#"}]}}, "required": ["next"]}, False),
        ({"properties": {"kids": LIST}, "required": ["kids"]}, True),
        ({"properties": {"kids": {**LIST, "minItems": 1}}, "required": ["kids"]}, False),
        ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, False),
        (
            {"$defs": {"a/b": {"type": "string"}}, "properties": {"x": {"$ref": "#/$defs/a~1b"}}, "required": ["x"]},
            True,
        ),
        (True, True),
    ],
)
def test_whether_something_finite_fits(schema: Any, ends: bool) -> None:
    assert has_instance(schema) == ends


def test_a_schema_that_branches_without_end_takes_no_time() -> None:
    levels = {f"d{at}": {"anyOf": [{"$ref": f"#/$defs/d{at + 1}"}] * 2} for at in range(60)}
    schema = {"$ref": "#/$defs/d0", "$defs": {**levels, "d60": {"$ref": "#/$defs/d0"}}}
    assert not has_instance(schema)
