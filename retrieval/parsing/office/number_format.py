"""A spreadsheet's value as its number format shows it (ECMA-376 part 1, 18.8.31), without colours and padding.

What a format leaves to the reader's own settings is shown plainly: dates as 2024-03-05, numbers in full.
"""

from __future__ import annotations

import datetime as dt
import re
from decimal import ROUND_HALF_UP, Context, Decimal, localcontext
from functools import lru_cache

Value = bool | int | float | str | dt.datetime | dt.date | dt.time | dt.timedelta | None

_LOCAL_DATES = ("mm-dd-yy", "m/d/yy", "General")
"""formats that stand for the date as the reader's machine writes it"""
_SECTION = re.compile(r'((?:"[^"]*"|\\.|\[[^\]]*\]|[_*].|[^;])*)(?:;|$)', re.S)
_TOKEN = re.compile(
    r'"(?P<quoted>[^"]*)"|\\(?P<escaped>.)|\[\$(?P<currency>[^\[\]-]*)[^\[\]]*\]|\[(?P<elapsed>h+|m+|s+)\]|\[[^\[\]]*\]'
    r"|_(?P<space>.)|\*.|(?P<general>General)|(?P<exponent>E[+-]?0+)|(?P<half>AM/PM|A/P)|(?P<date>y+|m+|d+|h+|s+(?:\.0+)?)"
    r"|(?P<digit>[0#?])|(?P<point>\.)|(?P<comma>,)|(?P<percent>%)|(?P<text>@)|(?P<literal>.)",
    re.S | re.I,
)
_EXACT = Context(prec=10_000)
"""no digit that a file can hold is rounded away but by its own format"""
_LONGEST_FIXED = 21
"""digits before the point up to which a number without a format is written in full"""


def shown(value: Value, number_format: str) -> str:
    """The value for people; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, str):
        return value
    if isinstance(value, (dt.datetime, dt.date, dt.time, dt.timedelta)):
        return _date(value, number_format)
    number, is_float = Decimal(repr(value)), isinstance(value, float)
    if number_format == "General":
        return plain(number, is_float)
    with localcontext(_EXACT):
        return _number(number, is_float, number_format)


def plain(number: Decimal, is_float: bool = True) -> str:
    """All the digits that the file holds, without the noise of binary fractions (0.1 + 0.2 is 0.3)."""
    if not number.is_finite():
        return str(number)
    if number == number.to_integral_value():
        if number.adjusted() < _LONGEST_FIXED:
            return str(int(number))
        return f"{number.normalize():E}"
    if is_float:
        number = Decimal(f"{float(number):.15g}").normalize()
    return f"{number:f}" if number.adjusted() > -8 else f"{number:E}"


def _number(number: Decimal, is_float: bool, number_format: str) -> str:
    section, number = _choose(number, _sections(number_format))
    tokens = _tokens(section)
    kinds = {kind for kind, _ in tokens}
    if not kinds & {"digit", "percent"} or not number.is_finite() or _is_fraction(tokens):
        if kinds & {"general", "date", "text", "elapsed"} or not tokens or _is_fraction(tokens):
            return plain(number, is_float)
        return _clean("".join(said for kind, said in tokens if kind == "literal"))  # as "-" for zero
    if "exponent" in kinds:
        return _scientific(number, tokens)
    return _fixed(number, tokens)


def _choose(number: Decimal, sections: tuple[str, ...]) -> tuple[str, Decimal]:
    """The section that serves the number, and what it shows of it (a section for negatives writes its own sign)."""
    if len(sections) > 1 and number < 0:
        return sections[1], -number
    if len(sections) > 2 and number == 0:
        return sections[2], number
    return sections[0], number


@lru_cache(maxsize=1024)
def _sections(number_format: str) -> tuple[str, ...]:
    sections = [match.group(1) for match in _SECTION.finditer(number_format)]
    return tuple(sections[:-1] if len(sections) > 1 and not sections[-1] else sections) or ("General",)


@lru_cache(maxsize=1024)
def _tokens(section: str) -> tuple[tuple[str, str], ...]:
    """(kind, text) in order; what is written as it stands is a ``literal``."""
    tokens = []
    for match in _TOKEN.finditer(section):
        kind = match.lastgroup
        if kind in ("quoted", "escaped", "currency", "literal"):
            tokens.append(("literal", match[kind]))
        elif kind == "space":
            tokens.append(("literal", " "))
        elif kind:
            tokens.append((kind, match[kind]))
    return tuple(tokens)


def _is_fraction(tokens: tuple[tuple[str, str], ...]) -> bool:
    return ("literal", "/") in tokens and any(kind == "digit" for kind, _ in tokens)


def _fixed(number: Decimal, tokens: tuple[tuple[str, str], ...]) -> str:
    last = max((i for i, (kind, _) in enumerate(tokens) if kind in ("digit", "point")), default=-1)
    for i, (kind, _) in enumerate(tokens):
        if kind == "percent":
            number *= 100
        elif kind == "comma" and i == last + 1:
            number /= 1000
            last = i
    point = next((i for i, (kind, _) in enumerate(tokens) if kind == "point"), len(tokens))
    whole = [i for i, (kind, _) in enumerate(tokens[:point]) if kind == "digit"]
    decimals = [said for kind, said in tokens[point:] if kind == "digit"]
    rounded = abs(number).quantize(Decimal(1).scaleb(-len(decimals)), ROUND_HALF_UP)
    before, _, after = f"{rounded:f}".partition(".")
    before = before.lstrip("0")
    grouped = bool(whole) and any(kind == "comma" for kind, _ in tokens[whole[0] : whole[-1] + 1])
    slots = _fill(before, [tokens[i][1] for i in whole], grouped)
    kept = max(len(after.rstrip("0")), sum(said == "0" for said in decimals))
    fraction = iter(after[:kept])
    sign = "-" if number < 0 and rounded else ""
    written, at = [sign], 0
    for i, (kind, said) in enumerate(tokens):
        if kind == "digit" and i < point:
            written.append(slots[at])
            at += 1
        elif kind == "digit":
            written.append(next(fraction, ""))
        elif kind == "point":
            written.append((before if not whole else "") + ("." if kept else ""))
        elif kind in ("literal", "percent"):
            written.append(said)
    return _clean("".join(written))


def _fill(digits: str, slots: list[str], grouped: bool) -> list[str]:
    """What each placeholder before the point shows; the first takes all that is left."""
    least = len(slots) - next((i for i, slot in enumerate(slots) if slot == "0"), len(slots))
    digits = digits.rjust(least, "0")
    if grouped:
        return [_thousands(digits), *[""] * (len(slots) - 1)]
    filled = [""] * len(slots)
    for i in range(len(slots) - 1, 0, -1):
        filled[i], digits = digits[-1:], digits[:-1]
    if slots:
        filled[0] = digits
    return filled


def _thousands(digits: str) -> str:
    head = len(digits) % 3
    parts = [digits[:head]] if head else []
    return ",".join([*parts, *(digits[i : i + 3] for i in range(head, len(digits), 3))])


def _scientific(number: Decimal, tokens: tuple[tuple[str, str], ...]) -> str:
    at = next(i for i, (kind, _) in enumerate(tokens) if kind == "exponent")
    point = next((i for i, (kind, _) in enumerate(tokens) if kind == "point"), at)
    decimals = sum(kind == "digit" for kind, _ in tokens[point:at])
    mantissa, _, exponent = f"{number:.{decimals}E}".partition("E")
    written = tokens[at][1]
    sign = "-" if exponent.startswith("-") else "+" if "+" in written else ""
    return f"{mantissa}E{sign}{exponent[1:].rjust(written.count('0'), '0')}"


def _date(value: dt.datetime | dt.date | dt.time | dt.timedelta, number_format: str) -> str:
    tokens = _tokens(_sections(number_format)[0])
    elapsed = any(kind == "elapsed" for kind, _ in tokens)
    if isinstance(value, dt.timedelta):
        return _elapsed(value, tokens) if elapsed else str(value)
    if elapsed and isinstance(value, dt.time):
        return _elapsed(dt.timedelta(hours=value.hour, minutes=value.minute, seconds=value.second), tokens)
    if number_format in _LOCAL_DATES or not any(kind == "date" for kind, _ in tokens):
        at_midnight = isinstance(value, dt.datetime) and value.time() == dt.time()
        return value.date().isoformat() if at_midnight else value.isoformat().replace("T", " ")  # type: ignore[union-attr]
    half = any(kind == "half" for kind, _ in tokens)
    written, before = [], ""
    for i, (kind, said) in enumerate(tokens):
        if kind == "date":
            code = said.lower()
            minutes = code[0] == "m" and len(code) <= 2 and (before == "h" or _next_is_seconds(tokens, i))
            written.append(_part(value, code, minutes, half))
            before = code[0]
        elif kind == "half":
            written.append("AM" if getattr(value, "hour", 0) < 12 else "PM")
        elif kind in ("literal", "point", "comma", "digit"):
            written.append(said)
    return _clean("".join(written))


def _next_is_seconds(tokens: tuple[tuple[str, str], ...], at: int) -> bool:
    return next((said.lower().startswith("s") for kind, said in tokens[at + 1 :] if kind == "date"), False)


def _part(value: dt.datetime | dt.date | dt.time, code: str, minutes: bool, half: bool) -> str:
    letter, width = code[0], len(code)
    if minutes or letter in "hs":
        clock = value if isinstance(value, (dt.time, dt.datetime)) else dt.time()
        if letter == "s":
            whole, _, fraction = code.partition(".")
            part = f".{clock.microsecond:06d}"[: 1 + len(fraction)] if fraction else ""
            return str(clock.second).zfill(min(len(whole), 2)) + part
        number = clock.minute if minutes else (clock.hour % 12 or 12) if half else clock.hour
        return str(number).zfill(min(width, 2))
    day = value if isinstance(value, dt.date) else dt.date(1900, 1, 1)
    if letter == "y":
        return f"{day.year:04d}" if width > 2 else f"{day.year % 100:02d}"
    if letter == "m":
        return [str(day.month), f"{day.month:02d}", f"{day:%b}", f"{day:%B}", f"{day:%B}"[0]][min(width, 5) - 1]
    return [str(day.day), f"{day.day:02d}", f"{day:%a}", f"{day:%A}"][min(width, 4) - 1]


def _elapsed(value: dt.timedelta, tokens: tuple[tuple[str, str], ...]) -> str:
    left = round(abs(value.total_seconds()))
    written = ["-" if value < dt.timedelta() else ""]
    for kind, said in tokens:
        if kind in ("elapsed", "date"):
            unit = {"h": 3600, "m": 60, "s": 1}.get(said[0].lower(), 1)
            number, left = divmod(left, unit)
            written.append(str(number).zfill(len(said)))
        elif kind == "literal":
            written.append(said)
    return _clean("".join(written))


def _clean(written: str) -> str:
    return " ".join(written.split())
