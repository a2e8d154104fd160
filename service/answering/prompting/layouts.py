"""Prompts: evidence and question to token ids.

A layout knows how one kind of model wants to be asked. `ChatLayout` speaks the chat template of the model's
own tokenizer; `PlainLayout` is for base models, which have none. The embedded reader brings its own layout.

Two properties hold for every layout here:

- Evidence comes first, in canonical order, then earlier turns, the question last: questions over the same documents
  share a prefix, and a follow-up's prompt begins with the prompt before it.
- Evidence is data, and so are questions and earlier turns. They are tokenised without any added token, so that a
  document which contains ``<|im_end|>`` or ``<tool_call>`` says these words and does nothing, and its delimiter is one
  that it cannot write (`service.answering.prompting.delimiters`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import structlog

from service.answering.passages import Passage, canonical
from service.answering.prompting.delimiters import pieces
from service.answering.prompting.encoding import Encoder
from service.answering.prompting.marked import OURS, THEIRS, Marked, marked
from service.answering.prompting.styles import LARGE, PLAIN, Style, style_for
from service.answering.prompting.template import ChatTemplate, Message, text_of
from service.answering.tools.calling import Calling
from service.answering.tools.definitions import Tool
from service.engine.spans import PassageSpans
from service.errors import InvalidRequest

__all__ = [
    "ChatLayout",
    "Message",
    "Passage",
    "PlainLayout",
    "Prompt",
    "PromptLayout",
    "ReadingLimits",
    "choose_layout",
]

log = structlog.get_logger(__name__)

FIRST_SOURCE = max(OURS, THEIRS) + 1
"""Contents are numbered from it on, so that it shows which of them a template leaves out."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt ready for the engine.

    Attributes:
        ids: token ids, special tokens included.
        passages: the evidence in prompt order.
        markers: by what the answer names each of them, and none of them holds; () where the model is not asked to.
        context: whatever the layout needs to read the answer (its reference tokens, say).
    """

    ids: list[int]
    question: str
    passages: tuple[Passage, ...]
    context: Any = field(default=None, repr=False)
    answer: tuple[int, ...] = ()
    """ids that the answer is, where the layout knows them before the model runs"""
    settle: Callable[[bool], Prompt] | None = field(default=None, repr=False, compare=False)
    """for a layout that chooses what is answered: reads the evidence, and gives the prompt with its ``answer``; given
    true, a prompt over what came into question alone"""
    markers: tuple[str, ...] = ()
    spans: PassageSpans | None = None
    """where the ids of the passages are, for a layout that encodes each by itself"""


@dataclass(frozen=True, slots=True)
class ReadingLimits:
    """What a model was measured to do, narrower than what its window admits.

    Attributes:
        long_tokens: longest prompt worth reading whole, in tokens, or None.
        passages: most retrieved passages worth giving it, or None.
        source: where the figures stand, for the reason shown to users.
    """

    long_tokens: int | None = None
    passages: int | None = None
    source: str = "model card"


class PromptLayout(Protocol):
    """How one kind of model is asked about documents.

    Attributes:
        name: shown in the statistics of an answer.
        limits: measured limits of the model, or None where only its window is known.
        follows: whether it takes earlier turns; if not, it is asked questions that stand alone.
        quotes: whether what is answered is chosen before the model runs (`Prompt.settle`).
        instructed: whether it can be told how to answer; if not, `build` is given no instructions.
    """

    name: str
    follows: bool
    quotes: bool
    instructed: bool
    limits: ReadingLimits | None

    def build(
        self,
        question: str,
        passages: Sequence[Passage],
        history: Sequence[Message] = (),
        likely: Sequence[str] = (),
        instructions: str = "",
    ) -> Prompt:
        """Ids for `question` over `passages` (any order).

        Args:
            history: earlier turns, oldest first.
            likely: sentences of the passages that may answer, the likeliest first; of use to a model that writes.
            instructions: of the one who asks, on how to answer; they stand with our own, in front of all else.

        A layout that cannot use earlier turns raises InvalidRequest rather than drop them.
        """
        ...

    def visible(self, answer_text: str) -> str:
        """What may be shown of an answer under way; a later call only ever appends to an earlier one."""
        ...


class ChatLayout:
    """Documents and question as one user turn of the tokenizer's chat template, in the words of a style."""

    follows = True
    quotes = False
    instructed = True

    def __init__(self, tokenizer: Any, style: Style = LARGE) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise InvalidRequest("This model's tokenizer has no chat template.", param="model")
        self.name = style.name
        self.limits: ReadingLimits | None = ReadingLimits(passages=style.passages, source="size")
        self.encoder = Encoder(tokenizer)
        self._template = ChatTemplate(self.encoder.tokenizer)
        self._style = style

    def build(
        self,
        question: str,
        passages: Sequence[Passage],
        history: Sequence[Message] = (),
        likely: Sequence[str] = (),
        instructions: str = "",
    ) -> Prompt:
        """Ids of system turn, examples, and the conversation, in whose first user turn the documents stand first.

        Each question is asked in the words of the style: over the same documents a prompt begins with the one before
        it, and with that answer. Likely sentences stand beside the last question alone. Instructions come after the
        style's own, and cannot hold a passage's delimiter; what is asked beside the question has the last word.
        """
        style = self._style
        ordered = style.ordered(passages)
        told = _told(style, instructions)
        turns: list[tuple[str, Sequence[str]]] = [("system", told)] if told else []
        turns += style.shown()
        said = [turn for turn in history if turn["role"] != "system"]
        asked = [*said, {"role": "user", "content": question}]
        opening, repeated = style.opening(question, ordered, likely, instructions)
        before = sum(len(parts) for _, parts in turns) + len(opening) - 3 * len(ordered)
        if asked[0]["role"] != "user":
            turns.append(("user", opening))
            opening = []
        for number, turn in enumerate(asked, start=1):
            own = [style.asked(turn["content"])] if turn["role"] == "user" else [turn["content"]]
            turns.append((turn["role"], [*opening, *(repeated if number == len(asked) else []), *own]))
            opening = []
        ids, places = self._encoded(turns)
        found = [places.get(before + 3 * number + 1) for number in range(len(ordered))]
        return Prompt(ids, question, tuple(ordered), markers=style.markers(ordered), spans=self._spans(ids, found))

    def chat_ids(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Ids of a plain conversation, ending where the assistant speaks next, as ``apply_chat_template`` gives them.

        Args:
            tools: those that the assistant may call.
        """
        told, definitions = self.calling.told(messages, tools)
        return self.encoder.rendered(self._render(told, definitions))

    def encode_turns(self, turns: Sequence[tuple[str, Sequence[str]]]) -> list[int]:
        """Ids of turns whose contents are given in pieces: see `Encoder.rendered_apart`."""
        return self._encoded(turns)[0]

    def _encoded(self, turns: Sequence[tuple[str, Sequence[str]]]) -> tuple[list[int], dict[int, range]]:
        """Their ids, and where those of the pieces are, by their numbers over all turns."""
        number = itertools.count(FIRST_SOURCE)
        messages = [
            {"role": role, "content": Marked.joined(Marked(part, next(number)) for part in parts)}
            for role, parts in turns
        ]
        ids, places = self.encoder.rendered_apart(self._render(messages))
        return ids, {source - FIRST_SOURCE: place for source, place in places.items()}

    def _spans(self, ids: Sequence[int], found: Sequence[range | None]) -> PassageSpans | None:
        """None where a template or a tokenizer hides one of them."""
        spans = tuple(span for span in found if span is not None)
        if not spans or len(spans) < len(found):
            return None
        return PassageSpans(self.encoder.preface(ids, spans[0].start), spans)

    def check_tools(self) -> None:
        """Any model with a chat template may call tools; how well is another question."""

    @cached_property
    def calling(self) -> Calling:
        """How this model is told of tools, and how it calls them."""
        return Calling(self._template)

    def visible(self, answer_text: str) -> str:
        """All of it."""
        return answer_text

    def _render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Marked:
        """The template around the contents; for one without a system, its words go in front of the first user turn."""
        try:
            return self._whole(messages, tools)
        except Exception as error:  # templates raise what they like for a role they do not know
            merged = _system_into_user(messages)
            try:
                if merged is None:
                    raise
                return self._whole(merged, tools)
            except Exception as again:
                raise InvalidRequest(
                    f"The model's chat template refuses this conversation: {again}", param="history"
                ) from error

    def _whole(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Marked:
        """Raises ValueError for a template that leaves out what somebody but the assistant said."""
        numbered = [
            {**message, "content": marked(message.get("content"), FIRST_SOURCE + at)}
            for at, message in enumerate(messages)
        ]
        text = self._template.render(numbered, tools)
        shown = set(text.sources)
        for message in numbered:
            said = _sources(message["content"])
            if said and message["role"] != "assistant" and shown.isdisjoint(said):
                raise ValueError("it leaves out a message")
        return text


class PlainLayout:
    """Documents, ``Question:`` and ``Answer:`` as running text, for base models without a chat template."""

    name = "plain"
    follows = True
    quotes = False
    instructed = True
    limits: ReadingLimits | None = None

    def __init__(self, tokenizer: Any) -> None:
        self.encoder = Encoder(tokenizer)
        first = list(tokenizer.encode("", add_special_tokens=True))[:1]
        self._start = first if first == [tokenizer.bos_token_id] else []

    def build(
        self,
        question: str,
        passages: Sequence[Passage],
        history: Sequence[Message] = (),
        likely: Sequence[str] = (),
        instructions: str = "",
    ) -> Prompt:
        """Ids of the running text; earlier turns stand between documents and question."""
        ordered = canonical(passages)
        turns = [f"{turn['role'].capitalize()}: {turn['content']}\n" for turn in history]
        asked = f"Question: {question.strip()}\nAnswer:"
        ids = [*self._start, *self.encoder.data("".join(_told(PLAIN, instructions)) + "\n\n")]
        preface, spans = len(ids), []
        for passage, block in zip(ordered, PLAIN.blocks(ordered, instructions), strict=True):
            places = [len(ids)]
            for part in pieces(block, passage):
                ids += self.encoder.data(part)
                places.append(len(ids))
            spans.append(range(places[1], places[2]))
        for part in [*turns, asked]:
            ids += self.encoder.data(part)
        return Prompt(ids, question, tuple(ordered), spans=PassageSpans(preface, tuple(spans)) if spans else None)

    def chat_ids(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Ids of a plain conversation, ending where the assistant speaks next.

        Raises InvalidRequest: tools are given, or a message is of one.
        """
        if tools or any(message["role"] == "tool" or message.get("tool_calls") for message in messages):
            self.check_tools()
        ids = list(self._start)
        for message in messages:
            ids += self.encoder.data(f"{message['role'].capitalize()}: {text_of(message)}\n")
        return [*ids, *self.encoder.data("Assistant:")]

    def check_tools(self) -> None:
        """Raises InvalidRequest: a base model was taught no calls."""
        raise InvalidRequest(
            "This model has no chat template: it cannot call tools.", hint="Take another model.", param="tools"
        )

    def visible(self, answer_text: str) -> str:
        """The answer up to where a base model starts to invent the next question."""
        return answer_text.partition("\nQuestion:")[0]


def choose_layout(tokenizer: Any, parameters: int | None = None) -> ChatLayout | PlainLayout:
    """The chat template's layout where there is one, else the plain one; the log says which.

    Args:
        parameters: of the model; None where that is not known.
    """
    if getattr(tokenizer, "chat_template", None):
        return ChatLayout(tokenizer, style_for(parameters))
    log.warning("no chat template: documents and question are given as running text", layout=PlainLayout.name)
    return PlainLayout(tokenizer)


def _told(style: Style, instructions: str) -> list[str]:
    """The system's turn, in pieces: the words of the style, then what the one who asks adds."""
    added = instructions.strip()
    return [*([style.system] if style.system else []), *([f"\n\n{added}" if style.system else added] if added else [])]


def _system_into_user(messages: Sequence[Message]) -> list[Message] | None:
    """The same messages, the system's words in front of the first user's, for templates without a system."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return None
    joined = Marked.joined((marked(text_of(messages[0])), Marked("\n\n"), marked(text_of(messages[1]))))
    return [{**messages[1], "content": joined}, *messages[2:]]


def _sources(content: str | Sequence[Mapping[str, Any]] | None) -> set[int]:
    """Those of a content's characters, white space aside."""
    texts: list[Any] = [content] if isinstance(content, str) else [part["text"] for part in content or ()]
    return {source for text in texts for start, end, source in text.runs() if text[start:end].strip()}
