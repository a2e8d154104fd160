"""A message as it grows, and the events that tell of it, in Anthropic's names and order."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from service.answering.tools.reading import CallPiece
from service.api.openai.items import new_id

Told = dict[str, Any]
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessageBlocks:
    """Builds one message. A block is whole before the next one begins.

    Attributes:
        message: as it stands; whole once `end` has been called.
    """

    def __init__(self, model: str) -> None:
        self.message: dict[str, Any] = {
            "id": new_id("msg"),
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
        self._open = False
        self._arguments = ""

    def begin(self) -> list[Told]:
        return [{"type": "message_start", "message": {**self.message, "content": []}}]

    def text(self, text: str) -> list[Told]:
        """More text, in the block of text that is open or in a new one."""
        if not text:
            return []
        told = [] if self._open and self._block["type"] == "text" else self._start({"type": "text", "text": ""})
        self._block["text"] += text
        return [*told, self._delta({"type": "text_delta", "text": text})]

    def cited(self, text: str, citations: list[dict[str, Any]]) -> list[Told]:
        """A claim and what carries it, in a block of its own."""
        told = self._start({"type": "text", "text": "", "citations": []}) + self.text(text)
        for citation in citations:
            self._block["citations"].append(citation)
            told.append(self._delta({"type": "citations_delta", "citation": citation}))
        return told + self.close()

    def call(self, piece: CallPiece) -> list[Told]:
        """A piece of a call."""
        told = []
        if piece.id:
            number = "toolu_" + piece.id.removeprefix("call_")
            told = self._start({"type": "tool_use", "id": number, "name": piece.name, "input": {}})
        if piece.arguments:
            self._arguments += piece.arguments
            told.append(self._delta({"type": "input_json_delta", "partial_json": piece.arguments}))
        return told

    def close(self) -> list[Told]:
        """The end of the open block, if one is."""
        if not self._open:
            return []
        self._open = False
        if self._block["type"] == "tool_use":
            self._block["input"] = _input(self._arguments)
            self._arguments = ""
        return [{"type": "content_block_stop", "index": self._index}]

    def end(self, reason: str | None, stats: dict[str, Any]) -> list[Told]:
        """The end of the message; `reason` and `stats` as the engine gives them."""
        told = self.close()
        cached = int(stats.get("cached_tokens") or 0)
        usage = {
            "input_tokens": int(stats.get("prompt_tokens") or 0) - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": int(stats.get("output_tokens") or 0),
        }
        sequence = stats.get("stopped_by")
        stop = {
            "stop_reason": "stop_sequence" if sequence is not None else STOP_REASONS.get(reason or "", "end_turn"),
            "stop_sequence": sequence,
        }
        self.message |= {**stop, "usage": usage}
        return [*told, {"type": "message_delta", "delta": stop, "usage": usage}, {"type": "message_stop"}]

    def _start(self, block: dict[str, Any]) -> list[Told]:
        told = self.close()
        self.message["content"].append(block)
        self._open = True
        shown = {**block, **({"citations": []} if "citations" in block else {})}
        return [*told, {"type": "content_block_start", "index": self._index, "content_block": shown}]

    def _delta(self, delta: dict[str, Any]) -> Told:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    @property
    def _block(self) -> dict[str, Any]:
        block: dict[str, Any] = self.message["content"][-1]
        return block

    @property
    def _index(self) -> int:
        return len(self.message["content"]) - 1


class CitedText:
    """The text of an answer from documents, given on claim by claim: a claim that is cited is a block of its own.

    Text behind the last claim that is known to be cited is held back until the next one is, or the answer ends.
    """

    def __init__(self, blocks: MessageBlocks, location: Callable[[dict[str, Any]], dict[str, Any]] | None) -> None:
        """location: a citation as Anthropic has it; None where citations are not wanted."""
        self._blocks = blocks
        self._location = location
        self._text = ""
        self._given = 0
        self._claim: tuple[int, int] | None = None
        self._citations: list[dict[str, Any]] = []

    def add(self, text: str) -> list[Told]:
        """More of the answer."""
        self._text = (self._text + text).lstrip()
        return self._up_to(len(self._text)) if self._location is None else []

    def cite(self, citation: dict[str, Any]) -> list[Told]:
        """One citation; those of a claim come together."""
        if self._location is None or not citation["verified"]:
            return []
        claim = citation["answer_start"], citation["answer_end"]
        told = [] if claim == self._claim else self._claim_whole()
        self._claim = claim
        self._citations.append(self._location(citation))
        return told

    def end(self, answer: str) -> list[Told]:
        """The rest; `answer` is the whole as it stands."""
        told = self._claim_whole()
        self._text = answer
        return told + self._up_to(len(answer))

    def _claim_whole(self) -> list[Told]:
        if self._claim is None:
            return []
        start, end = self._claim
        told = self._up_to(start)
        told += self._blocks.cited(self._text[max(start, self._given) : end], self._citations)
        self._given, self._claim, self._citations = max(end, self._given), None, []
        return told

    def _up_to(self, end: int) -> list[Told]:
        told = self._blocks.text(self._text[self._given : end])
        self._given = max(self._given, end)
        return told


def _input(arguments: str) -> dict[str, Any]:
    """The arguments of a call; of one that was cut off, none."""
    try:
        found = json.loads(arguments or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
