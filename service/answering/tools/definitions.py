"""Tools, and calls of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from service.answering.tools.schemas import has_instance
from service.engine.sampling.grammars import Constraint, inspect
from service.errors import InvalidRequest

Mode = Literal["none", "auto", "required"]


@dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    Attributes:
        parameters: the JSON schema of its arguments, of type object.
        param: where it stands in the request.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    param: str = "tools"

    def definition(self) -> dict[str, Any]:
        """As OpenAI's clients and chat templates write it."""
        described = {"description": self.description} if self.description else {}
        return {"type": "function", "function": {"name": self.name, **described, "parameters": self.parameters}}

    def check(self) -> None:
        """Compile its schema, in the child that looks at grammars. Blocks. Raises InvalidRequest naming the tool."""
        kind = self.parameters.get("type", "object")
        if kind != "object":
            raise InvalidRequest(
                f"The parameters of the tool {self.name!r} must be of type object, not {str(kind)[:60]!r}.",
                param=self.param,
            )
        try:
            inspect(Constraint("json_schema", json.dumps(self.arguments_schema())))
            why = "" if has_instance(self.parameters) else "it needs itself without end, so that nothing fits it."
        except RecursionError:
            why = "it is nested too deeply."
        except InvalidRequest as error:
            why = error.message.partition(": ")[2] or error.message
        if why:
            raise InvalidRequest(
                f"The parameters of the tool {self.name!r} cannot be used: {why}",
                hint="Correct the schema, or leave the tool out.",
                param=self.param,
            )

    def arguments_schema(self) -> dict[str, Any]:
        """The schema that arguments are held to: the tool's own, and no argument that it does not name.

        A schema that says nothing of other properties allows them, and a small model that may invent some does.
        """
        schema = {"type": "object", **self.parameters}
        combined = ("additionalProperties", "unevaluatedProperties", "patternProperties", "allOf", "anyOf", "oneOf")
        if not any(name in schema for name in (*combined, "$ref")):
            schema["additionalProperties"] = False
        return schema


@dataclass(frozen=True)
class ToolChoice:
    """Which tools may be called, and whether one must be.

    Attributes:
        allowed: names; None for all.
        several: more than one call may stand in one answer.
    """

    mode: Mode = "auto"
    allowed: tuple[str, ...] | None = None
    several: bool = True

    def of(self, tools: Sequence[Tool]) -> list[Tool]:
        """Those of `tools` that may be called. Raises InvalidRequest: the choice names one that is not there."""
        names = {tool.name for tool in tools}
        unknown = next((name for name in self.allowed or () if name not in names), None)
        if unknown is not None:
            raise InvalidRequest(
                f"tool_choice names {unknown[:64]!r}, which is not among the tools.", param="tool_choice"
            )
        if self.mode == "none":
            return []
        return [tool for tool in tools if self.allowed is None or tool.name in self.allowed]
