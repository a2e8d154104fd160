"""The columns of a table: what is asked, of which type the answer is, and how a value is read from it.

A model that writes its own words is held to the type by a constraint: the value on the first line, below it the
sentence that says so, of which support is judged. Of one that quotes the value is read from the quotation.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from service.answering.question import Frozen
from service.engine.sampling.grammars import Constraint
from service.fields import Text

Kind = Literal["text", "number", "date", "choice"]
Value = str | int | float
NOT_STATED = "not stated"
SENTENCE = r"[^\n]{1,400}"

_NUMBER = r"-?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|-?[0-9]+(?:\.[0-9]+)?"
_NUMBERS = re.compile(rf"(?<![\w.,])(?:{_NUMBER})(?![\w]|[.,]\d)")
_LONGEST = 40
"""characters of a number; a longer one is no quantity, and beyond 308 digits none that JSON has"""
_DATE = r"[0-9]{4}(?:-[0-9]{2}(?:-[0-9]{2})?)?"
_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_MONTH = "|".join(f"{month}|{month[:4]}\\.|{month[:3]}\\.?" for month in _MONTHS)
_DATES = re.compile(
    rf"(?P<iso>\b[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}\b)"
    rf"|\b(?P<day>[0-9]{{1,2}})(?:st|nd|rd|th)? (?:of )?(?P<month>{_MONTH}),? (?P<year>[0-9]{{4}})\b"
    rf"|\b(?P<month2>{_MONTH}) (?P<day2>[0-9]{{1,2}})(?:st|nd|rd|th)?,? (?P<year2>[0-9]{{4}})\b"
    rf"|(?<![\w.,])(?P<alone>1[0-9]{{3}}|20[0-9]{{2}})(?![\w]|[.,]\d)",
    re.IGNORECASE,
)


class Column(Frozen):
    """A question that every document is asked."""

    question: Text = Field(min_length=1, max_length=2000)
    type: Kind = Field(default="text", description="What the value is; date: YYYY, YYYY-MM or YYYY-MM-DD.")
    choices: tuple[Annotated[Text, Field(min_length=1, max_length=200)], ...] = Field(
        default=(), max_length=50, description="Of type choice: the values that there are."
    )

    @model_validator(mode="after")
    def _choices_belong_to_a_choice(self) -> Self:
        if not self.question.strip():
            raise ValueError("the question is empty")
        if (self.type == "choice") != bool(self.choices):
            raise ValueError("choices go with type choice, and with no other")
        if any("\n" in choice for choice in self.choices) or len({c.casefold() for c in self.choices}) < len(
            self.choices
        ):
            raise ValueError("choices are single lines, each another")
        return self

    @property
    def asked(self) -> str:
        """The question as a model that writes is asked it."""
        if self.type == "text":
            return self.question
        what = {"number": "the number alone, in digits", "date": "the date alone, as YYYY, YYYY-MM or YYYY-MM-DD"}
        wanted = what.get(self.type) or f"one of these alone: {', '.join(self.choices)}"
        return (
            f"{self.question}\nWrite {wanted}, on the first line, or “{NOT_STATED}”; on the second line the sentence "
            "of the document that says so."
        )

    @property
    def constraint(self) -> Constraint | None:
        """What holds a model that writes to the type."""
        if self.type == "text":
            return None
        shapes = {"number": _NUMBER, "date": _DATE}
        value = shapes.get(self.type) or "|".join(re.escape(choice) for choice in self.choices)
        return Constraint("regex", f"(?:{value}|{NOT_STATED})\n{SENTENCE}")

    def read(self, answer: str, written: bool) -> Value | None:
        """The value in an answer; None where it has none, or several.

        Args:
            written: by a model that was held to the constraint.
        """
        if self.type == "text":
            return answer.strip() or None
        text = answer.partition("\n")[0] if written else answer
        readers: dict[str, Callable[[str], Sequence[Value]]] = {
            "number": _numbers,
            "date": _dates,
            "choice": self._chosen,
        }
        found = readers[self.type](text)
        return found[0] if len(found) == 1 else None

    def stands_in(self, value: Value, cited: Sequence[str]) -> bool:
        """Whether the passages that carry the answer hold the value itself; words of a choice need not."""
        if self.type not in ("number", "date"):
            return True
        read: Callable[[str], Sequence[Value]] = _numbers if self.type == "number" else _dates
        held = [each for text in cited for each in read(text)]
        if self.type == "date":
            return any(str(each).startswith(str(value)) for each in held)
        return value in held

    def _chosen(self, text: str) -> list[str]:
        return [one for one in self.choices if re.search(rf"(?<!\w){re.escape(one)}(?!\w)", text, re.IGNORECASE)]


def _numbers(text: str) -> list[int | float]:
    """Those of a text, each once."""
    found = [match[0].replace(",", "") for match in _NUMBERS.finditer(text) if len(match[0]) <= _LONGEST]
    return list(dict.fromkeys(float(one) if "." in one else int(one) for one in found))


def _dates(text: str) -> list[str]:
    """Those of a text, each once, as YYYY-MM-DD or YYYY; what is no day of the calendar is none."""
    if re.fullmatch(_DATE, text.strip()):
        return [text.strip()]
    found = []
    for match in _DATES.finditer(text):
        if match["alone"]:
            found.append(match["alone"])
            continue
        try:
            found.append((dt.date.fromisoformat(match["iso"]) if match["iso"] else _day(match)).isoformat())
        except ValueError:
            continue
    return list(dict.fromkeys(found))


def _day(match: re.Match[str]) -> dt.date:
    month = (match["month"] or match["month2"]).lower()[:3]
    number = next(at for at, name in enumerate(_MONTHS, start=1) if name.startswith(month))
    return dt.date(int(match["year"] or match["year2"]), number, int(match["day"] or match["day2"]))
