"""A tokenizer's chat template, rendered as ``apply_chat_template`` does, with each character's source kept.

The environment is transformers' (sandboxed, the same filters, globals and tags) but for the strings in it: contents
are `Marked`, and whatever could lose the marks makes its result content whole.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from service.answering.prompting.marked import OURS, Marked, marked, source_in

Message = Mapping[str, Any]
"""One turn: ``role``, ``content`` (a text, or parts of type text) and, of an assistant or a tool, more."""

_KEEPING = {"attr", "default", "d", "dictsort", "first", "groupby", "items", "last", "list", "map", "max", "min"} | {
    *("random", "reject", "rejectattr", "reverse", "select", "selectattr", "slice", "sort", "string", "trim", "unique")
}
"""Filters that pass strings on as they are, or by methods of theirs."""
_PROBE = "probe7c1e"
"""A content that no template writes itself."""


class ChatTemplate:
    """The template of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        """tokenizer: has a chat template."""
        self._tokenizer = tokenizer
        self._compiled = functools.lru_cache(maxsize=4)(_Environment().from_string)

    @property
    def added_tokens(self) -> dict[str, int]:
        """Tokens that no text is cut into, with their ids: those that were added to the tokenizer, blanks aside."""
        added = self._tokenizer.added_tokens_decoder
        return {token.content: number for number, token in added.items() if token.content.strip()}

    @property
    def special_tokens(self) -> dict[str, int]:
        """Those of them that decoding leaves out."""
        added = self._tokenizer.added_tokens_decoder
        return {token.content: number for number, token in added.items() if token.special}

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), begun: bool = True
    ) -> Marked:
        """The text of a conversation. A content that is not marked yet is content of one source.

        Args:
            tools: as OpenAI's clients define them.
            begun: the assistant's next turn has begun.

        Raises whatever the template does for a conversation that it does not take.
        """
        return self._rendered([self._message(message) for message in messages], marked(list(tools)), begun)

    def _rendered(self, messages: Sequence[Message], tools: Sequence[Any] = (), begun: bool = True) -> Marked:
        given = list(tools) or None
        template = self._compiled(self._tokenizer.get_chat_template(tools=given))
        variables = {**self._tokenizer.special_tokens_map, "documents": None, "add_generation_prompt": begun}
        return Marked.joined(template.generate(messages=list(messages), tools=given, **variables))

    def _message(self, message: Message) -> dict[str, Any]:
        """As templates take it: what is absent is left out, the content is a text or, for some, a list of parts."""
        given = {name: marked(value) for name, value in message.items() if value is not None}
        given["role"] = str(message["role"])
        content = given.get("content")
        takes_text, takes_parts = self._takes
        if isinstance(content, str) and not takes_text:
            given["content"] = [{"type": "text", "text": content}]
        elif isinstance(content, list) and not takes_parts:
            given["content"] = Marked.joined(part["text"] for part in content)
        return given

    @functools.cached_property
    def _takes(self) -> tuple[bool, bool]:
        """Whether a content may be a text, and whether it may be a list of parts."""

        def shown(content: Any) -> str | None:
            try:
                return self._rendered([{"role": "user", "content": content}])
            except Exception:  # templates raise what they like
                return None

        text, parts = shown(_PROBE), shown([{"type": "text", "text": _PROBE}])
        if text is None or _PROBE not in text:
            return False, True
        return True, text == parts


def text_of(message: Message) -> str:
    """A message's content, its parts in a row; "" for none."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


class _Generator(CodeGenerator):
    """Compiles ``~`` to a join that keeps marks."""

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        self.write("environment.concat((")
        for one in node.nodes:
            self.visit(one, frame)
            self.write(", ")
        self.write("))")


class _Generation(Extension):
    """``{% generation %}``, by which transformers finds what an assistant said: here its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """Where templates run."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(["%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=_shown, cache_size=0
        )
        self.filters = {name: _watched(name, one) for name, one in self.filters.items()}
        self.filters["tojson"] = _to_json
        self.filters["join"] = _join
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)

    @staticmethod
    def concat(parts: Iterable[Any]) -> Marked:  # type: ignore[override]
        return Marked.joined(str(_shown(part)) for part in parts)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        text = getattr(__obj, "__self__", None)
        if type(text) is str and source_in((args, kwargs)) and hasattr(Marked, __obj.__name__):
            __obj = getattr(Marked(text, OURS), __obj.__name__)
        result = super().call(__context, __obj, *args, **kwargs)
        return result if isinstance(result, Marked) else _content(result, (args, kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return _content(super().call_binop(context, operator, left, right), (left, right))


def _content(result: Any, made_of: Any) -> Any:
    """A text made with contents, of which no more is known, is content."""
    source = source_in(made_of) if isinstance(result, str) else OURS
    return Marked(result, source) if source != OURS else result


def _shown(value: Any) -> Any:
    """A value as a template writes it out; what is no text but holds some is content."""
    source = OURS if isinstance(value, str) else source_in(value)
    return Marked(value, source) if source != OURS else value


def _watched(name: str, made: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(made)
    def watched(*args: Any, **kwargs: Any) -> Any:
        result = made(*args, **kwargs)
        kept = name in _KEEPING or (name == "replace" and any(isinstance(one, Marked) for one in args[:2]))
        return result if kept and isinstance(result, Marked) else _content(result, (args, kwargs))

    return watched


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return _content(text, value)


def _join(value: Iterable[Any], between: str = "", attribute: str | int | None = None) -> Marked:
    if attribute is not None:
        value = [one[attribute] for one in value]
    return Marked.joined([between]).join(str(_shown(one)) for one in value)


def _raise(message: str) -> None:
    raise TemplateError(message)
