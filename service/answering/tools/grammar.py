"""What an answer in which tools may be called must be: text up to a call, and calls with arguments by their schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from service.answering.tools.calling import CallFormat
from service.answering.tools.definitions import Tool
from service.engine.sampling.grammars import Constraint

MOST_CALLS = 16
"""In one answer: a small model may repeat itself."""

BARE = r'\s*(```(json)?\s*)?\{\s*"name":\s*"%s",\s*"%s":'
"""The head of a call without the format's own opening: name, key of the arguments."""
_LAYOUT = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}


def calls_constraint(
    written: CallFormat,
    tools: Sequence[Tool],
    tokens: Mapping[str, int],
    *,
    required: bool = False,
    several: bool = True,
    answer: Mapping[str, Any] | None = None,
) -> Constraint:
    """The grammar of an answer, in Lark's syntax.

    Args:
        tokens: added tokens with their ids, which no text is cut into and `written` may name.
        required: the answer begins with a call.
        several: more than one call is allowed, where the model writes more than one.
        answer: the JSON schema of an answer without calls; None for any text.
    """
    rules = [_call(written, tools)]
    rules += [f"args_{at}: %json {json.dumps(tool.arguments_schema() | _LAYOUT)}" for at, tool in enumerate(tools)]
    more = ""
    if several and written.between is not None:
        more = f" ({_words(written.between, tokens)} call){{0,{MOST_CALLS - 1}}}"
    ends = [_words(end, tokens) for end in (written.closing, f"{written.closing}\n")]
    tail = f"call{more} ({' | '.join(filter(None, ends))}){'' if ends[0] else '?'}"
    opening = _words(written.opening, tokens)
    if required:
        rules.append(f"start: {opening} {tail}")
    elif answer is not None:
        rules += [f"start: answer | {opening} {tail}", f"answer: %json {json.dumps({**answer, **_LAYOUT})}"]
    elif not written.opening:
        rules += [f"start: TEXT | {tail}", r"TEXT: /(\s*[^\s{](.|\n)*)?/"]
    else:
        trigger, rest = _trigger(written.opening, tokens)
        token = f"TEXT {_words(trigger, tokens)} | " if trigger in tokens else ""
        rules += [
            f"start: text_alone | begun {_words(rest, tokens)} {tail} | bare",
            *_bare(written, tools),
            "text_alone: TEXT",
            f"begun: {token}spelt",
            f"spelt[lazy]: TEXT {json.dumps(trigger, ensure_ascii=False)}",
        ]
        rules.append(r"TEXT: /(.|\n)*/")
    return Constraint("grammar", "\n".join(["%llguidance {}", *reversed(rules)]))


def _call(written: CallFormat, tools: Sequence[Tool]) -> str:
    """One call as an object of JSON."""
    heads = [json.dumps(f'{{"name": "{tool.name}", "{written.key}": ') for tool in tools]
    return "call: (" + " | ".join(f"{head} args_{at}" for at, head in enumerate(heads)) + ') "}"'


def _bare(written: CallFormat, tools: Sequence[Tool]) -> list[str]:
    """A call that the answer begins with, in the words of `BARE`: Qwen's coders leave out what stands around it."""
    heads = [f"bare_{at}[lazy]: /{BARE % (tool.name, written.key)}/" for at, tool in enumerate(tools)]
    each = " | ".join(f"bare_{at} SPACE args_{at}" for at in range(len(tools)))
    return [*heads, "SPACE: / ?/", f"bare: ({each}) BARE_END", r"BARE_END: /\s{0,4}\}(\s{0,2}```)?\n?/"]


def _trigger(opening: str, tokens: Mapping[str, int]) -> tuple[str, str]:
    """What of the opening tells a call from text, and what follows it."""
    token = next((token for token in tokens if opening.startswith(token)), None)
    trigger = token or opening.rstrip()
    return trigger, opening[len(trigger) :]


def _words(text: str, tokens: Mapping[str, int]) -> str:
    """A text as terminals: added tokens by their ids, the rest as strings."""
    parts = re.split(f"({'|'.join(map(re.escape, tokens))})", text) if tokens else [text]
    return " ".join(
        f"<[{tokens[part]}]>" if part in tokens else json.dumps(part, ensure_ascii=False) for part in parts if part
    )
