"""The tools of one request, with the model that is to call them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.answering.prompting.layouts import ChatLayout, PlainLayout
from service.answering.tools.definitions import Tool, ToolChoice
from service.answering.tools.grammar import calls_constraint
from service.answering.tools.reading import CallReader
from service.engine.sampling.grammars import Constraint, inspect
from service.errors import InvalidRequest

MOST_TOOLS = 128


class ToolUse:
    """What a request with tools adds to one without: a prompt, a constraint, and a reader of the answer.

    Attributes:
        shown: the tools that the prompt names.
    """

    def __init__(self, tools: Sequence[Tool], choice: ToolChoice, layout: ChatLayout | PlainLayout) -> None:
        """Raises InvalidRequest: two tools of one name, a choice of none that is there, a model that calls none."""
        names = [tool.name for tool in tools]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InvalidRequest(f"There are two tools named {twice!r}.", param="tools")
        self._choice = choice
        self._callable = choice.of(tools)
        self.shown = tools if self._callable else ()
        if choice.mode == "required" and not self._callable:
            raise InvalidRequest("A call is required, and there is no tool.", param="tool_choice")
        self._calling = None
        if self._callable:
            layout.check_tools()
            assert isinstance(layout, ChatLayout)
            self._calling = layout.calling

    def constraint(self, answer: Mapping[str, Any] | None = None) -> Constraint | None:
        """What the output must be; None where nothing can be called. Blocks while new schemas are compiled.

        Args:
            answer: the JSON schema of an answer that calls nothing; None for any text.

        Raises InvalidRequest naming the tool that cannot be used.
        """
        if self._calling is None:
            return None
        for tool in self._callable:
            tool.check()
        constraint = calls_constraint(
            self._calling.format,
            self._callable,
            self._calling.tokens,
            required=self._choice.mode == "required",
            several=self._choice.several,
            answer=answer,
        )
        try:
            inspect(constraint)
        except InvalidRequest as error:
            why = error.message.partition(": ")[2] or error.message
            raise InvalidRequest(f"The tools cannot be used together: {why}", param="tools") from error
        return constraint

    def reader(self) -> CallReader | None:
        """Reads one answer; None where nothing can be called."""
        if self._calling is None:
            return None
        names = [tool.name for tool in self._callable] if self._calling.format.opening else []
        return CallReader(self._calling.format, self._calling.unsaid, names)
