"""``NAME[:key=value,…]``: how users write drafters and attention policies, which are named dataclasses of options."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from drafters.options import DRAFTERS, Options
from service.errors import InvalidRequest
from sparse_attn.plan.names import NAMES

if TYPE_CHECKING:
    from sparse_attn.plan.policy import ModelShape, Policy

Named = TypeVar("Named", bound="Options | Policy")

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_NUMBERS = {int: "a whole number", float: "a number"}


def parse_drafter(text: str, param: str = "drafter") -> Options:
    """A drafter, as its options.

    Raises:
        InvalidRequest: names what is unknown, malformed or out of bounds, and what is known.
    """
    try:
        return _named(text, "drafter", DRAFTERS)
    except ValueError as error:
        raise InvalidRequest(f"{error}.", param=param) from error


def parse_policy(text: str, param: str = "attention") -> Policy:
    """An attention policy, or two joined by ``+``: prefill of the first, decode of the second. Call its ``check`` with
    the model's shape next.

    Raises:
        InvalidRequest: names what is unknown or malformed, and what is known.
    """
    parts = text.split("+")
    try:
        for part in parts:
            _check_name(part)
        from sparse_attn.plan.policies import POLICIES, joined

        return joined([_named(part, "attention policy", POLICIES) for part in parts])
    except ValueError as error:
        raise InvalidRequest(f"{error}.", param=param) from error


def blends(text: str | None) -> bool:
    """Whether an attention policy is ``blend``, which puts prompts together of passages that were read before."""
    return text is not None and text.partition(":")[0].strip() == "blend"


def check_policy(policy: Policy, shape: ModelShape, param: str = "attention") -> None:
    """Refuse a policy that a model of this shape and its pages do not allow. Raises InvalidRequest."""
    from sparse_attn.errors import SparseAttentionError

    try:
        policy.check(shape)
    except SparseAttentionError as error:
        raise InvalidRequest(f"{error}.", param=param) from error


def _check_name(text: str) -> None:
    """Refuse what is no policy before torch is imported, which the policies need and which takes seconds.

    Somebody who has added a policy of his own has imported them.
    """
    name = text.strip().partition(":")[0]
    if name not in NAMES and "sparse_attn.plan.policies" not in sys.modules:
        raise ValueError(_unknown(name, "attention policy", NAMES))


def _unknown(name: str, what: str, known: Iterable[str]) -> str:
    return f"unknown {what} {name!r}; there are {', '.join(known)}"


def _named(text: str, what: str, known: Mapping[str, type[Named]]) -> Named:
    name, _, rest = text.strip().partition(":")
    if name not in known:
        raise ValueError(_unknown(name, what, known))
    names = {field.name.rstrip("_"): field.name for field in fields(known[name])}  # lambda_: no name in Python
    defaults = {field.name.rstrip("_"): field.default for field in fields(known[name])}
    values: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise ValueError(f"{what} {name}: write options as key=value, not {item!r}")
        if key not in defaults:
            raise ValueError(f"{what} {name} has no option {key!r}; it has {', '.join(defaults)}")
        if key in values:
            raise ValueError(f"{what} {name}: {key} is given twice")
        values[key] = _value(f"{what} {name}: {key}", value, type(defaults[key]))
    return known[name](**{names[key]: value for key, value in values.items()})


def _value(option: str, text: str, kind: type[Any]) -> Any:
    """What a string stands for where the option's default is of that kind; a drafter may be the option of another."""
    if issubclass(kind, Options):
        return _named(text, "drafter", DRAFTERS)
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError(f"{option} must be true or false, not {text!r}")
        return _BOOLEANS[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{option} must be {_NUMBERS.get(kind, kind.__name__)}, not {text!r}") from None
