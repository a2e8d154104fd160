"""Options said once: a dataclass whose fields are the flags of a command, and the keys of a file that it may read.

A field is ``Annotated`` with ``typer.Option`` or ``typer.Argument``. A tuple is a flag that may be repeated, or with
`Separated` one string; both take either form from a file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo, ParameterInfo

from eval.errors import EvalError

T = TypeVar("T")


@dataclass(frozen=True)
class Separated:
    """A tuple that the command line takes as one string.

    Attributes:
        by: what stands between its items.
        item: reads one of them; by default the type that the tuple holds.
    """

    by: str = ","
    item: Callable[[str], Any] | None = None


def command(options: type, action: Callable[[dict[str, Any]], None], *, defaults: bool = True) -> Callable[..., None]:
    """A function for Typer with a parameter for each field, that gives what was typed to ``action``.

    Args:
        options: the dataclass; its docstring is the command's help.
        defaults: False where a flag that was not given must be told from its default: it is None then.
    """

    def run(**typed: Any) -> None:
        action({name: value for name, value in typed.items() if value not in (None, [])})

    hints = get_type_hints(options, include_extras=True)
    own = [field for field in fields(options) if field.name in inspect.get_annotations(options)]
    inherited = [field for field in fields(options) if field not in own]
    parameters = [_parameter(field, hints[field.name], defaults) for field in [*own, *inherited]]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {}
    run.__doc__ = options.__doc__
    return run


def read(options: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass made of what a command line or a file says of its fields.

    Raises:
        EvalError: a value is of the wrong kind.
    """
    hints = get_type_hints(options, include_extras=True)
    return options(**{name: _convert(name, hints[name], value) for name, value in values.items()})


def _parameter(field: Field[Any], hint: Any, defaults: bool) -> inspect.Parameter:
    """What Typer sees of a field."""
    kind, separated, shown = _taken_apart(hint)
    default = field.default if field.default is not MISSING else inspect.Parameter.empty
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        kind = str if separated else list[item]  # type: ignore[valid-type]
        if isinstance(default, tuple):
            default = separated.by.join(map(str, default)) if separated else list(default)
    if not defaults:
        default = None
    if default is None or default == []:
        kind, default = kind | None, None
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, shown]
    )


def _taken_apart(hint: Any) -> tuple[Any, Separated | None, ParameterInfo]:
    """A field's type without None, how its items are written, and Typer's part."""
    kind, *extras = get_args(hint)
    if type(None) in get_args(kind):
        kind = next(part for part in get_args(kind) if part is not type(None))
    separated = next((extra for extra in extras if isinstance(extra, Separated)), None)
    shown = next(extra for extra in extras if isinstance(extra, OptionInfo | ArgumentInfo))
    return kind, separated, shown


def _convert(name: str, hint: Any, value: Any) -> Any:
    kind, separated, _ = _taken_apart(hint)
    try:
        if get_origin(kind) is not tuple:
            return _item(kind, value)
        by = separated.by if separated else ","
        items = value.split(by) if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        one = (separated.item if separated else None) or get_args(kind)[0]
        return tuple(_item(one, item.strip() if isinstance(item, str) else item) for item in items if item != "")
    except (TypeError, ValueError) as error:
        raise EvalError(f"the option {name} cannot be {value!r}", param=name) from error


def _item(kind: Any, value: Any) -> Any:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(value)
        return value
    return Path(value).expanduser() if kind is Path else kind(value)
