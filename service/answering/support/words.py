"""A text as the rule of support reads it: words, numbers, dates, units, formulas in a normal form, with their places.

1,900 and 1900 are one number, "ten" is 10, 12 May 2005 is 2005-05-12, "kilometres" is km; a formula is one token, for a
part of it says something else. What cannot be read in one way only is left as it stands.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Literal

from service.answering.support.lexicon import Lexicon

Kind = Literal["word", "number", "date", "unit", "formula", "mark"]

CJK = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_LETTERS = rf"[^\W\d_{CJK}]"
_JOIN = r"(?:\u00ad\s*|[\u200b\u2060\ufeff]|[-\u2010\u2011][ \t]*\r?\n\s*(?=[a-zß-ÿ]))"
_OPERATOR = r"[=≠<>≤≥≈±×÷∈∉⊂⊆∪∩→⇒↦∝∼√∑∏∫∂^]|:=|[+*/−-](?=\s)"
_DIGITS = r"\d+(?:[.,'’\u00a0\u202f]\d{3})*(?!\d)(?:[.,]\d+)?"
_TOKEN = re.compile(
    rf"(?P<iso>\b\d{{4}}-\d{{2}}-\d{{2}}\b)|(?P<dotted>\b\d{{1,2}}\.\s?\d{{1,2}}\.\s?\d{{4}}\b)|(?P<slashed>\b\d{{1,2}}/\d{{1,2}}/\d{{4}}\b)"
    rf"|(?P<reference>\[\d{{1,4}}(?:\s*[,–-]\s*\d{{1,4}})*\])"
    rf"|(?P<code>{_LETTERS}+[-]?\d(?:[\w-]|\.(?=\d))*|\d+(?:\.\d+){{2,}}|\d+[a-zA-Z]+\d[\w-]*)"
    rf"|(?P<ordinal>\d+(?:st|nd|rd|th)\b)"
    rf"|(?P<decade>\d{{3}}0['’]?s\b)"
    rf"|(?P<number>(?<![\w.])[-−]?(?=\d)(?:{_DIGITS})|\d+(?:[.,]\d+)*)"
    rf"|(?P<unit>%|km/h\b|‰|°\s?[CF]\b|[$€£¥])"
    rf"|(?P<cjk>[{CJK}])"
    rf"|(?P<word>{_LETTERS}[\u0300-\u036f]*(?:(?:{_JOIN})?{_LETTERS}[\u0300-\u036f]*)*(?:(?<=[dlcsnjmtqDLCSNJMTQ])['’](?={_LETTERS}{{3}}))?)"
    rf"|(?P<negated>(?<=n)['’]t\b)|(?P<possessive>['’]s\b)"
    rf"|(?P<operator>{_OPERATOR})|(?P<mark>[,;:()\[\]—–.!?…。，、；：！？\"“”„«»-])"
)
_UNSEEN = re.compile(r"[\u00ad\u200b\u2060\ufeff]|[-\u2010\u2011][ \t]*\r?\n\s*")
_UNITS = {
    name: names.split()[0]
    for names in (
        "% percent prozent pct",
        "usd $ dollar dollars",
        "eur € euro euros",
        "gbp £ pound pounds sterling",
        "jpy ¥ yen",
        "km kilometre kilometer kilometres kilometers",
        "m metre meter metres meters",
        "cm centimetre centimeter centimetres centimeters zentimeter",
        "mm millimetre millimeter millimetres millimeters",
        "mi mile miles",
        "ft foot feet",
        "in. inch inches zoll",
        "yd yard yards",
        "kg kilogram kilograms kilogramm kilo kilos",
        "g gram grams gramm",
        "mg milligram milligrams",
        "t tonne tonnes ton tons tonnen",
        "lb lbs",
        "l litre liter litres liters",
        "ml millilitre milliliter millilitres milliliters",
        "ha hectare hectares hektar",
        "s second seconds sekunde sekunden",
        "min minute minutes minuten",
        "h hr hrs hour hours stunde stunden",
        "day days tag tage tagen",
        "week weeks woche wochen",
        "month months monat monate monaten",
        "year years yr yrs jahr jahre jahren",
        "hz hertz",
        "khz kilohertz",
        "mhz megahertz",
        "ghz gigahertz",
        "w watt watts",
        "kw kilowatt kilowatts",
        "mw megawatt megawatts",
        "kwh",
        "v volt volts",
        "°c celsius",
        "°f fahrenheit",
        "k kelvin",
        "pa pascal",
        "kb kilobyte kilobytes",
        "mb megabyte megabytes",
        "gb gigabyte gigabytes",
        "tb terabyte terabytes",
        "mph",
        "km/h",
        "bar",
        "kn knot knots",
    )
    for name in names.split()
}
_LONG_AGO = 3000
_YEAR = frozenset({"year", "jahr", "año", "année"})


@dataclass(frozen=True, slots=True)
class Token:
    """One token.

    Attributes:
        start, end: its characters in the text.
        key: its normal form; tokens of one kind that say the same have the same.
        lower: as it stands, in small letters.
        value: of a number, and year, month, day of a date, None where a part is not named.
        capital: it begins with a capital letter; `opens`: it is the first of its sentence, where that says nothing.
    """

    start: int
    end: int
    kind: Kind
    key: str
    lower: str
    value: tuple[Decimal | int | None, ...] = ()
    capital: bool = False
    opens: bool = False

    @property
    def named(self) -> bool:
        """Written as a name: a capital where a sentence does not begin."""
        return self.capital and not self.opens


def tokens(text: str, lexicon: Lexicon, start: int = 0, end: int | None = None) -> list[Token]:
    """The tokens of ``text[start:end]``, offsets into ``text``; references like ``[2]`` are left out."""
    end = len(text) if end is None else end
    found: list[Token] = []
    for match in _TOKEN.finditer(text, start, end):
        token = _token(match, lexicon)
        if token is not None:
            found.append(token)
    return _opened(_formulas(_dates(_units(_numbers(_units(found), lexicon)), lexicon), text))


def _token(match: re.Match[str], lexicon: Lexicon) -> Token | None:
    kind, raw = match.lastgroup, match[0]
    first, last = match.span()
    if kind == "reference":
        return None
    if kind == "number":
        return _number(raw, first, last, lexicon)
    if kind == "ordinal":
        return Token(first, last, "number", f"{int(raw[:-2])}.", raw.lower(), (Decimal(int(raw[:-2])),))
    if kind in ("iso", "dotted", "slashed"):
        return _date(kind, raw, first, last)
    if kind in ("decade", "code"):
        word = raw.casefold().replace("’", "").replace("'", "")
        return Token(first, last, "word", word, word, capital=True)
    if kind == "unit":
        name = re.sub(r"\s", "", raw.lower())
        return Token(first, last, "unit", _UNITS.get(name, name), name)
    if kind == "negated":
        return Token(first, last, "word", "not", "n't")
    if kind == "possessive":
        return Token(first, last, "word", "s", "s")
    if kind == "operator":
        return Token(first, last, "mark", "operator", raw)
    if kind == "mark":
        return Token(first, last, "mark", raw, raw)
    word = unicodedata.normalize("NFKC", _UNSEEN.sub("", raw)).casefold().strip("'’")
    if word.endswith("n") and match.string[last : last + 2] in ("'t", "’t"):
        word = word[:-1]  # "isn't" is "is" and "n't"
        word = {"wo": "will", "ca": "can"}.get(word, word)
    return Token(first, last, "word", lexicon.stem(word), word, capital=raw[0].isupper())


def _number(raw: str, first: int, last: int, lexicon: Lexicon) -> Token:
    point, comma = (",", ".") if lexicon.comma_decimal else (".", ",")
    plain = raw.replace("−", "-").replace("\u00a0", "").replace("\u202f", "").replace("'", "").replace("’", "")
    if re.fullmatch(rf"-?\d{{1,3}}(?:{re.escape(comma)}\d{{3}})+(?:{re.escape(point)}\d+)?", plain):
        plain = plain.replace(comma, "")
    plain = plain.replace(point, ".") if plain.count(point) == 1 else plain
    try:
        value = Decimal(plain)
    except InvalidOperation:
        return Token(first, last, "word", plain, raw, capital=True)
    return Token(first, last, "number", _plain(value), raw, (value,))


def _plain(value: Decimal) -> str:
    return format(value.normalize(), "f")


def _date(kind: str, raw: str, first: int, last: int) -> Token | None:
    parts = [int(part) for part in re.findall(r"\d+", raw)]
    if kind == "iso":
        year, month, day = parts
    elif kind == "dotted":
        day, month, year = parts
    else:  # 05/12/2005 is May in one country and December in another
        month, day, year = parts
        if month > 12:
            month, day = day, month
        elif day <= 12 and day != month:
            return Token(first, last, "word", raw, raw, capital=True)
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return Token(first, last, "word", raw, raw, capital=True)
    return Token(first, last, "date", f"{year}-{month}-{day}", raw, (year, month, day))


def _units(found: list[Token]) -> list[Token]:
    """Unit words behind a number; a currency's sign goes behind its number."""
    done: list[Token] = []
    for token in found:
        before = done[-1] if done else None
        if token.kind == "word" and before is not None and before.kind == "number" and token.lower in _UNITS:
            token = replace(token, kind="unit", key=_UNITS[token.lower])
        elif token.kind == "number" and before is not None and before.kind == "unit" and before.lower in "$€£¥":
            done[-1:] = [token]
            token = before
        done.append(token)
    return done


def _numbers(found: list[Token], lexicon: Lexicon) -> list[Token]:
    """Number words read, and "10 million", "twenty-one" made one number."""
    done: list[Token] = []
    for token in found:
        before = done[-1] if done else None
        if token.kind == "word" and token.lower in lexicon.numbers and _counts(token, done):
            value = Decimal(lexicon.numbers[token.lower])
            token = replace(token, kind="number", key=_plain(value), value=(value,))
        elif token.kind == "word" and token.lower in lexicon.ordinals and token.lower != "second":
            value = Decimal(lexicon.ordinals[token.lower])
            token = replace(token, kind="number", key=f"{value}.", value=(value,))
        if (
            token.kind == "word"
            and token.lower in lexicon.magnitudes
            and before is not None
            and before.kind in ("number", "unit")
        ):
            at = len(done) - (1 if before.kind == "number" else 2)
            if at >= 0 and done[at].kind == "number":
                done[at] = _product(done[at], token, lexicon.magnitudes[token.lower])
                continue
        elif (
            token.kind == "word"
            and token.lower in lexicon.magnitudes
            and before is not None
            and before.lower in ("a", "one", "eine")
        ):
            value = Decimal(lexicon.magnitudes[token.lower])
            token = replace(token, kind="number", key=_plain(value), value=(value,))
        if is_year(token) and before is not None and before.lower in _YEAR:
            done.pop()  # "in the year 1752" is "in 1752"
        if token.kind == "number" and before is not None:
            tens = done[-2] if before.key == "-" and len(done) > 1 else before
            if tens.kind == "number" and tens.lower.isalpha() and token.lower.isalpha() and _tens(tens, token):
                value = Decimal(tens.value[0] or 0) + Decimal(token.value[0] or 0)
                key = _plain(value) + ("." if token.key.endswith(".") else "")
                token = replace(token, start=tens.start, key=key, value=(value,))
                del done[-2 if tens is not before else -1 :]
        done.append(token)
    return done


def _counts(token: Token, done: Sequence[Token]) -> bool:
    """Whether a number word is one here: "one" is so only behind tens ("twenty-one")."""
    if token.lower not in ("one", "un", "uno"):
        return True
    return len(done) > 1 and done[-1].key == "-" and done[-2].kind == "number"


def _tens(tens: Token, unit: Token) -> bool:
    high, low = tens.value[0] or 0, unit.value[0] or 0
    return 20 <= high <= 90 and high % 10 == 0 and 0 < low < 10


def _product(number: Token, word: Token, factor: int) -> Token:
    value = Decimal(number.value[0] or 0) * factor
    return replace(
        number, end=max(number.end, word.end), key=_plain(value), value=(value,), lower=f"{number.lower} {word.lower}"
    )


def _dates(found: list[Token], lexicon: Lexicon) -> list[Token]:
    """A month with the day and the year beside it made one date."""
    done: list[Token] = []
    at = 0
    while at < len(found):
        token = found[at]
        month = (
            lexicon.months.get(token.lower)
            if token.kind == "word" and (token.capital or lexicon.code in ("es", "fr"))
            else None
        )
        if month is None:
            done.append(token)
            at += 1
            continue
        day, behind = _day_before(done, lexicon)
        after = at + 1
        if day is None and after < len(found) and _is_day(found[after]):
            day, after = int(found[after].value[0] or 0), after + 1
        year, after = _year_after(found, after, lexicon)
        if day is None and year is None:
            done.append(token)
            at += 1
            continue
        first = done[len(done) - behind].start if behind else token.start
        del done[len(done) - behind :]
        done.append(Token(first, found[after - 1].end, "date", f"{year}-{month}-{day}", "", (year, month, day)))
        at = after
    return done


def _is_day(token: Token) -> bool:
    return (
        token.kind == "number"
        and bool(token.value)
        and 1 <= (token.value[0] or 0) <= 31
        and token.key.rstrip(".").isdigit()
    )


def _day_before(done: Sequence[Token], lexicon: Lexicon) -> tuple[int | None, int]:
    """The day before a month, and how many tokens it takes: "12", "12th of", "12.", "12 de"."""
    for gap in (0, 1, 2):
        if len(done) > gap and _is_day(done[-1 - gap]):
            between = done[len(done) - gap :]
            if all(token.key == "." or token.lower in ("of", "de") for token in between):
                return int(done[-1 - gap].value[0] or 0), gap + 1
    return None, 0


def _year_after(found: Sequence[Token], at: int, lexicon: Lexicon) -> tuple[int | None, int]:
    ahead = at
    while (
        ahead < len(found) and ahead - at < 2 and (found[ahead].key == "," or found[ahead].lower in ("de", "of", "del"))
    ):
        ahead += 1
    if ahead < len(found) and is_year(found[ahead]):
        return int(found[ahead].value[0] or 0), ahead + 1
    return None, at


def is_year(token: Token) -> bool:
    """Whether a number can be a year of our time, as it is written."""
    return (
        token.kind == "number"
        and bool(re.fullmatch(r"\d{4}", token.lower))
        and 1000 <= (token.value[0] or 0) < _LONG_AGO
    )


def _formulas(found: list[Token], text: str) -> list[Token]:
    """Operators with all that they join made one token each."""
    done: list[Token] = []
    at = 0
    while at < len(found):
        if found[at].key != "operator":
            done.append(found[at])
            at += 1
            continue
        first = (
            done.pop()
            if done and done[-1].kind in ("word", "number") and not _apart(text, done[-1], found[at])
            else found[at]
        )
        if done and done[-1].key == "operator":
            first = done.pop()
        last = at
        while last + 1 < len(found) and not _apart(text, found[last], found[last + 1]):
            following = found[last + 1]
            if (
                following.key == "operator"
                or (found[last].key == "operator" and following.kind in ("word", "number", "unit"))
                or (following.key in "()" and following.key)
                or (found[last].key in ("(", ")") and following.kind in ("word", "number"))
            ):
                last += 1
            else:
                break
        raw = re.sub(r"\s+", "", text[first.start : found[last].end]).replace("−", "-")
        done.append(Token(first.start, found[last].end, "formula", raw, raw))
        at = last + 1
    return done


def _apart(text: str, one: Token, other: Token) -> bool:
    """Whether a stop or a line's end parts two tokens."""
    return bool(re.search(r"[,;:\n]|\.\s", text[one.end : other.start])) or one.key in (",", ";", ":", ".")


def _opened(found: list[Token]) -> list[Token]:
    """The first word marked: its capital letter says nothing."""
    for at, token in enumerate(found):
        if token.kind != "mark":
            found[at] = replace(token, opens=True)
            break
    return found
