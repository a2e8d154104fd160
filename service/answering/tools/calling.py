"""How one model is told of tools and calls them: by its chat template where that has tools, else by a prompt of ours.

Which of the two, and how calls are written, is found by rendering the template with a call: whatever writes calls as
``{"name": …, "arguments": {…}}`` between some words of its own (Hermes and Qwen, Llama, Mistral) is understood.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from service.answering.prompting.template import ChatTemplate, Message, text_of
from service.answering.tools.definitions import Tool

_ASKED, _SAID = "probe4f9a", "probe71c3"
_NAMES = ("first8d03", "second5b77")
_OBJECT = r'\{"name": "%s", "(arguments|parameters)": \{"q": 1\}[^{}]*\}'


@dataclass(frozen=True)
class CallFormat:
    """How calls stand in an answer: `opening`, JSON objects with `between` between them, `closing`.

    Attributes:
        opening: "" where a call is told from text by its first character alone.
        between: None for a model that makes one call at a time.
        key: of the arguments, beside ``name``.
    """

    opening: str
    between: str | None
    closing: str
    key: str = "arguments"

    def written(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """Calls as they stand in an answer."""
        each = [json.dumps({"name": call["name"], self.key: call["arguments"]}, ensure_ascii=False) for call in calls]
        return self.opening + (self.between or "\n").join(each) + self.closing


HERMES = CallFormat("<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>")
INSTRUCTIONS = """You may call functions to assist with the user's request. These are the functions, as JSON:
<tools>
{tools}
</tools>
To call one, reply with a JSON object of its name and its arguments between these tags:
<tool_call>
{{"name": <function-name>, "arguments": <arguments-object>}}
</tool_call>"""
"""For templates without tools; the format is the one that most open models were taught."""


class Calling:
    """The ways of one chat template."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template

    @property
    def format(self) -> CallFormat:
        """How the model writes calls."""
        return self._own or HERMES

    @property
    def by_template(self) -> bool:
        """Whether the template itself has tools."""
        return self._own is not None

    @cached_property
    def tokens(self) -> dict[str, int]:
        """Added tokens in the way that calls are written: a model writes them as they are, and not letter by letter."""
        words = f"{self.format.opening}{self.format.between or ''}{self.format.closing}"
        return {token: number for token, number in self._template.added_tokens.items() if token in words}

    @property
    def unsaid(self) -> dict[str, int]:
        """Those of them that decoding leaves out."""
        special = self._template.special_tokens
        return {token: number for token, number in self.tokens.items() if token in special}

    def told(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[list[Message], list[dict[str, Any]]]:
        """The messages, and the definitions, that the template is given."""
        definitions = [tool.definition() for tool in tools]
        if self.by_template:
            return [_with_short_ids(message) for message in messages], definitions
        spoken = _spoken(messages)
        if definitions:
            listed = "\n".join(json.dumps(one, ensure_ascii=False) for one in definitions)
            words = INSTRUCTIONS.format(tools=listed)
            if spoken and spoken[0]["role"] == "system":
                words = f"{text_of(spoken.pop(0))}\n\n{words}"
            spoken.insert(0, {"role": "system", "content": words})
        return spoken, []

    @cached_property
    def _own(self) -> CallFormat | None:
        """The template's own format; None where it has none that is understood."""
        try:
            return self._found()
        except Exception:  # templates raise what they like
            return None

    def _found(self) -> CallFormat | None:
        tools = [Tool(name, "", {"type": "object", "properties": {}}).definition() for name in _NAMES]
        asked: Message = {"role": "user", "content": _ASKED}
        told = self._template.render([asked], tools)
        if _NAMES[0] not in told:
            return None
        begun = str.__str__(told).rpartition(_ASKED)[2]
        lead, _, end = self._answer(begun, {"role": "assistant", "content": _SAID}, tools).partition(_SAID)
        one = self._answer(begun, _calls(_NAMES[:1]), tools)
        first = re.fullmatch(f"(.*?){_OBJECT % _NAMES[0]}(.*)", one, re.DOTALL)
        if first is None:
            return None
        opening, key, closing = first.groups()
        between = None
        try:
            two = self._answer(begun, _calls(_NAMES), tools)
            second = re.search(f"{_OBJECT % _NAMES[0]}(.*?){_OBJECT % _NAMES[1]}", two, re.DOTALL)
            between = second.group(2) if second is not None else None
        except Exception:  # the template says that there is one call at a time
            between = None
        closing = closing.removesuffix(end)
        cut = min((closing.find(token) for token in self._template.special_tokens if token in closing), default=None)
        return CallFormat(opening.removeprefix(lead).lstrip(), between, closing[:cut], key)

    def _answer(self, begun: str, message: Message, tools: Sequence[Any]) -> str:
        """What the template writes of an assistant's message behind `begun`, the beginning of its turn."""
        asked = {"role": "user", "content": _ASKED}
        text = str.__str__(self._template.render([asked, message], tools, begun=False)).rpartition(_ASKED)[2]
        if not text.startswith(begun):
            raise ValueError("the assistant's turn begins otherwise than it is begun")
        return text[len(begun) :]


def _calls(names: Sequence[str]) -> Message:
    calls = [_call(f"probe{at:04}", name, {"q": 1}) for at, name in enumerate(names)]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _call(number: str, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}


def _short(number: str) -> str:
    """An id of nine letters and digits, as Mistral's templates want them."""
    return hashlib.blake2b(number.encode(), digest_size=5).hexdigest()[:9]


def _with_short_ids(message: Message) -> Message:
    if message["role"] == "tool":
        return {**message, "tool_call_id": _short(message["tool_call_id"])}
    if not message.get("tool_calls"):
        return message
    return {**message, "tool_calls": [{**call, "id": _short(call["id"])} for call in message["tool_calls"]]}


def _spoken(messages: Sequence[Message]) -> list[Message]:
    """The conversation in roles that every template has: calls as the assistant's text, results as the user's."""
    spoken: list[Message] = []
    results = False  # the last message is of results, which what the user says next is put behind
    for message in messages:
        role, text = message["role"], text_of(message)
        if message.get("tool_calls"):
            written = HERMES.written([call["function"] for call in message["tool_calls"]])
            spoken.append({"role": role, "content": f"{text}\n{written}" if text else written})
        elif role == "tool" or (results and role == "user"):
            said = f"<tool_response>\n{text}\n</tool_response>" if role == "tool" else text
            earlier = [text_of(spoken.pop())] if results else []
            spoken.append({"role": "user", "content": "\n".join([*earlier, said])})
        else:
            spoken.append(message)
        results = role == "tool"
    return spoken
