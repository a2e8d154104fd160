"""A response as it grows, and the events that tell of it, in OpenAI's names and order."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

from service.answering.tools.reading import CallPiece
from service.api.openai.chat import Delta
from service.api.openai.common import usage
from service.api.openai.items import new_id

Told = dict[str, Any]


class ResponseEvents:
    """Builds one response out of what its choice gains. An item is whole before the next one begins.

    Attributes:
        response: as it stands; whole once `end` has been called.
    """

    def __init__(self, echo: dict[str, Any]) -> None:
        """echo: what of the request the response repeats, and its id."""
        self.response = {
            **echo,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
        }
        self._numbers = itertools.count()
        self._whole = Delta()
        self._logprobs: list[dict[str, Any]] = []
        """of tokens whose text is held back"""
        self._item: dict[str, Any] | None = None
        """the one that grows, the last of `output`"""

    def begin(self) -> Iterator[Told]:
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", response=dict(self.response))

    def add(self, delta: Delta) -> list[Told]:
        """What the response gains."""
        self._whole.add(Delta("", [], [], delta.finish_reason, delta.stats, delta.folio, delta.answer))
        told: list[Told] = []
        self._logprobs += delta.logprobs
        if delta.text:
            told += self._add_text(delta.text)
        for piece in delta.calls:
            told += self._add_call(piece)
        return told

    def end(self) -> list[Told]:
        """The end of the last item and of the response."""
        if self._item is None:  # an answer without a word
            told = self._begin_message()
        else:
            told = []
        whole, cut = self._whole, self._whole.finish_reason == "length"
        if self._item is not None and self._item["type"] == "message" and whole.answer is not None:
            self._item["content"][0]["text"] = whole.answer
        told += self._close("incomplete" if cut else "completed")
        self.response["usage"] = _usage(whole.stats)
        if whole.folio is not None:
            self.response["folio"] = whole.folio
        self.response["status"] = "incomplete" if cut else "completed"
        if cut:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self.response["completed_at"] = int(time.time())
        return [*told, self._event(f"response.{self.response['status']}", response=self.response)]

    def fail(self, message: str) -> Told:
        """The end of a response that breaks off."""
        self.response |= {"status": "failed", "error": {"code": "server_error", "message": message}}
        return self._event("response.failed", response=self.response)

    def _add_text(self, text: str) -> list[Told]:
        told = [] if self._item is not None and self._item["type"] == "message" else self._begin_message()
        assert self._item is not None
        part = self._item["content"][0]
        logprobs, self._logprobs = self._logprobs, []
        part["text"] += text
        part["logprobs"] += logprobs
        where = {**self._place(), "content_index": 0}
        return [*told, self._event("response.output_text.delta", **where, delta=text, logprobs=logprobs)]

    def _begin_message(self) -> list[Told]:
        item = {"id": new_id("msg"), "type": "message", "status": "in_progress", "role": "assistant"}
        told = self._begin_item({**item, "content": []})
        part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        assert self._item is not None
        self._item["content"] = [{**part, "annotations": [], "logprobs": []}]
        return [*told, self._event("response.content_part.added", **self._place(), content_index=0, part=part)]

    def _add_call(self, piece: CallPiece) -> list[Told]:
        told: list[Told] = []
        if piece.id:
            call = {"id": new_id("fc"), "type": "function_call", "status": "in_progress", "call_id": piece.id}
            told += self._begin_item(call | {"name": piece.name, "arguments": ""})
        assert self._item is not None
        if piece.arguments:
            self._item["arguments"] += piece.arguments
            name = "response.function_call_arguments.delta"
            told.append(self._event(name, **self._place(), delta=piece.arguments))
        return told

    def _begin_item(self, item: dict[str, Any]) -> list[Told]:
        told = self._close("completed")
        self.response["output"].append(item)
        self._item = item
        return [*told, self._event("response.output_item.added", output_index=self._index, item=dict(item))]

    def _close(self, status: str) -> list[Told]:
        item = self._item
        if item is None:
            return []
        item["status"] = status
        told = self._close_message(item) if item["type"] == "message" else self._close_call(item)
        told.append(self._event("response.output_item.done", output_index=self._index, item=item))
        self._item = None
        return told

    def _close_message(self, item: dict[str, Any]) -> list[Told]:
        part = item["content"][0]
        where = {**self._place(), "content_index": 0}
        told = []
        for number, annotation in enumerate(_annotations(self._whole.folio)):
            part["annotations"].append(annotation)
            told.append(
                self._event(
                    "response.output_text.annotation.added", **where, annotation_index=number, annotation=annotation
                )
            )
        text, logprobs = part["text"], part["logprobs"]
        told.append(self._event("response.output_text.done", **where, text=text, logprobs=logprobs))
        told.append(self._event("response.content_part.done", **where, part=part))
        return told

    def _close_call(self, item: dict[str, Any]) -> list[Told]:
        name = "response.function_call_arguments.done"
        return [self._event(name, **self._place(), name=item["name"], arguments=item["arguments"])]

    @property
    def _index(self) -> int:
        return len(self.response["output"]) - 1

    def _place(self) -> dict[str, Any]:
        assert self._item is not None
        return {"item_id": self._item["id"], "output_index": self._index}

    def _event(self, name: str, /, **data: Any) -> Told:
        return {"type": name, "sequence_number": next(self._numbers), **data}


def _annotations(folio: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Citations as OpenAI's annotations of files; `index` is where the claim ends in the text."""
    return [
        {
            "type": "file_citation",
            "file_id": citation["document"],
            "filename": citation["name"],
            "index": citation["answer_end"],
        }
        for citation in (folio or {}).get("citations", ())
        if citation["verified"]
    ]


def _usage(stats: dict[str, Any]) -> dict[str, Any]:
    counted = usage([stats])
    return {
        "input_tokens": counted["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": counted["prompt_tokens_details"]["cached_tokens"],
            "cache_write_tokens": 0,
        },
        "output_tokens": counted["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counted["total_tokens"],
    }
