"""How a model calls tools: whether it calls, the right one, and arguments that are valid by the tool's JSON schema.

Ten tools are offered together, from an empty schema to nested ones, with ten requests for each. Validity is judged by
the `jsonschema` package, not by what held the output to the schema. A call that the limit of tokens cut off counts as
invalid.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from typer import Option

from eval.bench.base import Figures, Model, Row, Seed, ThreadedOptions, bench
from service.answering.prompting.layouts import ChatLayout
from service.answering.tools.definitions import Tool, ToolChoice
from service.answering.tools.use import ToolUse
from service.engine.async_engine import AsyncEngine
from service.engine.outputs import Generation, TokenOutput
from service.engine.params import SamplingParams
from service.models import chat_layout_for, load_engine
from service.settings import load_settings

CHOICES = ("auto", "required")


def _object(required: Sequence[str] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


_TEXT = {"type": "string", "maxLength": 60}
_PLACES = ("Lund", "Oslo", "Kyoto", "Quito", "Cairo", "Perth", "Lyon", "Austin", "Accra", "Riga")
_NAMES = ("Ada", "Bo", "Chen", "Dana", "Emil", "Fatou", "Grace", "Hugo", "Ines", "Jun")

TOOLS: dict[str, tuple[str, dict[str, Any], str]] = {
    "get_weather": (
        "The weather forecast of a city.",
        _object(["city", "days"], city=_TEXT, days={"type": "integer", "minimum": 1, "maximum": 7}),
        "What will the weather be in {place} over the next {n} days?",
    ),
    "get_time": ("The present time here.", _object(), "What time is it now, {name} wants to know."),
    "convert_currency": (
        "Convert an amount of money.",
        _object(
            ["amount", "from", "to"],
            amount={"type": "number", "minimum": 0},
            **{"from": {"enum": ["EUR", "USD", "SEK", "JPY"]}, "to": {"enum": ["EUR", "USD", "SEK", "JPY"]}},
        ),
        "How much are {n}50 USD in EUR?",
    ),
    "send_message": (
        "Send a message to people.",
        _object(
            ["to", "text"], to={"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 4}, text=_TEXT,
            urgent={"type": "boolean"},
        ),
        "Send a message to {name} saying that the train is {n} minutes late.",
    ),
    "create_event": (
        "Put an event into the calendar.",
        _object(
            ["title", "date"], title=_TEXT, date={"type": "string", "pattern": "^\\d{4}-\\d{2}-\\d{2}$"},
            place={"anyOf": [_TEXT, {"type": "null"}]},
        ),
        "Create a calendar event 'Dinner with {name}' on 2026-12-0{n}.",
    ),
    "search_products": (
        "Search the shop.",
        _object(
            ["query", "filter"], query=_TEXT,
            filter=_object(
                ["max_price"], max_price={"type": "integer", "minimum": 1, "maximum": 999}, in_stock={"type": "boolean"}
            ),
        ),
        "Search the shop for running shoes under {n}00 euros that are in stock.",
    ),
    "set_light": (
        "Switch and dim a lamp.",
        _object(
            ["room", "on"], room={"enum": ["kitchen", "bedroom", "hall", "study"]}, on={"type": "boolean"},
            brightness={"type": "integer", "minimum": 0, "maximum": 100},
        ),
        "Turn on the light in the kitchen at {n}0 percent brightness.",
    ),
    "book_table": (
        "Reserve a table in a restaurant.",
        _object(
            ["restaurant", "guests"], restaurant=_TEXT, guests={"type": "integer", "minimum": 1, "maximum": 12},
            contact=_object(["name"], name=_TEXT, phone={"type": "string", "pattern": "^\\+?[0-9]{6,12}$"}),
        ),
        "Book a table for {n} at the restaurant Aurora in {place}.",
    ),
    "translate": (
        "Translate a text.",
        _object(["text", "language"], text=_TEXT, language={"enum": ["de", "es", "fr", "sv", "zh"]}),
        "Translate 'Good morning, {name}' into French.",
    ),
    "plan_route": (
        "Plan a route over several stops.",
        _object(
            ["stops"],
            stops={
                "type": "array",
                "minItems": 2,
                "maxItems": 5,
                "items": _object(["city"], city=_TEXT, nights={"type": "integer", "minimum": 0, "maximum": 9}),
            },
            transport={"enum": ["train", "car", "bike"]},
        ),
        "Plan a route by train from {place} to Berlin with {n} nights there.",
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options(ThreadedOptions):
    """Let a model call tools: how often it calls, the right tool, with arguments that are valid by the schema."""

    model: Model = "smollm2"
    requests: Annotated[int, Option(min=1, max=10, help="Requests for each of the ten tools.")] = 10
    max_tokens: Annotated[int, Option(min=16, help="Most tokens of an answer.")] = 200
    temperature: Annotated[float, Option(min=0, max=2, help="0 is greedy.")] = 0.7
    seed: Seed = 0


def run(options: Options) -> Figures:
    """A row for each choice (auto: the model may answer in text; required: it has to call), and the answers."""
    with load_engine(load_settings(model=options.model)) as engine:
        layout = chat_layout_for(engine.tokenizer)
        tools = [Tool(name, description, schema) for name, (description, schema, _) in TOOLS.items()]
        rows, answers = list[Row](), list[Row]()
        for mode in CHOICES:
            found = _asked(options, engine, layout, ToolUse(tools, ToolChoice(mode), layout))  # type: ignore[arg-type]
            rows.append({"tool_choice": mode, **_counted(found)})
            answers += [{"tool_choice": mode, **one} for one in found]
        by_template = isinstance(layout, ChatLayout) and layout.calling.by_template
    told = options.told("model", "requests", "max_tokens", "temperature", "seed")
    return {**told, "format": "template" if by_template else "prompt", "rows": rows, "answers": answers}


def _asked(options: Options, engine: AsyncEngine, layout: Any, use: ToolUse) -> list[Row]:
    """Each request's answer, read and judged."""
    asked = [
        (name, template.format(place=_PLACES[at], name=_NAMES[at], n=at % 7 + 1))
        for at in range(options.requests)
        for name, (_, _, template) in TOOLS.items()
    ]
    prompts = [layout.chat_ids([{"role": "user", "content": text}], use.shown) for _, text in asked]
    constraint = use.constraint()
    params = [
        SamplingParams(
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            constraint=constraint,
            seed=options.seed + at,
        )
        for at in range(len(asked))
    ]
    given = engine.generate(prompts, params)
    return [_judged(name, text, one, use) for (name, text), one in zip(asked, given, strict=True)]


def _judged(wanted: str, text: str, given: Generation, use: ToolUse) -> Row:
    reader = use.reader()
    assert reader is not None
    pieces = reader.feed(TokenOutput("", given.token_ids, given.text, finished=True))[1]
    calls: list[list[str]] = []
    for piece in pieces:
        if piece.id:
            calls.append([piece.name, ""])
        calls[-1][1] += piece.arguments
    return {
        "request": text,
        "wanted": wanted,
        "calls": calls,
        "valid": [is_valid(name, arguments) for name, arguments in calls],
        "finish_reason": given.finish_reason,
    }


def is_valid(name: str, arguments: str) -> bool:
    """Whether arguments are JSON that fits the schema of the tool."""
    from jsonschema import Draft202012Validator

    try:
        found = json.loads(arguments)
    except ValueError:
        return False
    return bool(Draft202012Validator(TOOLS[name][1]).is_valid(found))


def _counted(found: Sequence[Row]) -> Row:
    """Answers, those with a call, those whose first call is of the tool that was wanted; calls, and the valid ones."""
    called = [one for one in found if one["calls"]]
    return {
        "answers": len(found),
        "with_call": len(called),
        "right_tool": sum(one["calls"][0][0] == one["wanted"] for one in called),
        "calls": sum(len(one["calls"]) for one in found),
        "valid_calls": sum(sum(one["valid"]) for one in found),
        "cut_off": sum(one["finish_reason"] == "length" for one in found),
    }


def _table(figures: Figures) -> list[Row]:
    return list(figures["rows"])


command = bench(Options, run, "tools", _table)
