"""Typed columns: what a model that writes is held to, and what value an answer has."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from service.engine.sampling.grammars import inspect
from service.tables.columns import Column


def column(kind: str, *choices: str) -> Column:
    return Column(question="What?", type=kind, choices=choices)


@pytest.mark.parametrize(
    ("kind", "answer", "value"),
    [
        ("text", " It has seven arches. ", "It has seven arches."),
        ("text", "  ", None),
        ("number", "It has 7 arches.", 7),
        ("number", "The bridge cost 12,500.75 pounds.", 12500.75),
        ("number", "It fell to -3 degrees.", -3),
        ("number", "Between 3 and 5 arches.", None),
        ("number", "3 here and 3 there.", 3),
        ("number", "Version 1.2.3 of it.", None),
        ("number", "It has many.", None),
        ("date", "It was built in 1862.", "1862"),
        ("date", "Opened on 2 May 1871.", "1871-05-02"),
        ("date", "Opened on Sept. 3, 1871, with music.", "1871-09-03"),
        ("date", "Signed 2024-02-29.", "2024-02-29"),
        ("date", "Signed 2023-02-29.", None),
        ("date", "From 1862 to 1871.", None),
        ("date", "12345 people", None),
        ("choice", "The stone is grey.", "grey"),
        ("choice", "Red or grey?", None),
        ("choice", "Greyish.", None),
    ],
)
def test_a_value_is_read_where_there_is_one_alone(kind: str, answer: str, value: Any) -> None:
    asked = column(kind, "red", "grey") if kind == "choice" else column(kind)
    assert asked.read(answer, written=False) == value


@pytest.mark.parametrize(
    ("asked", "fits", "others"),
    [
        (column("number"), ["7", "-3", "12,500.75"], ["seven", "7 arches", "1.2.3"]),
        (column("date"), ["1862", "1862-05", "1862-05-02"], ["2 May 1862", "62"]),
        (column("choice", "a.b", "c|d"), ["a.b", "c|d"], ["axb", "c"]),
    ],
)
def test_a_model_that_writes_is_held_to_the_type(asked: Column, fits: list[str], others: list[str]) -> None:
    assert asked.constraint is not None
    inspect(asked.constraint)
    for value in [*fits, "not stated"]:
        written = f"{value}\nIt says so."
        assert re.fullmatch(asked.constraint.text, written)
        assert (asked.read(written, written=True) is None) == (value == "not stated")
    assert not any(re.fullmatch(asked.constraint.text, f"{value}\nIt says so.") for value in others)


def test_a_number_or_a_date_must_stand_in_what_carries_it() -> None:
    assert column("number").stands_in(12500, ["It cost 12,500 pounds."])
    assert not column("number").stands_in(12501, ["It cost 12,500 pounds."])
    assert column("date").stands_in("1871", ["Opened on 2 May 1871."])
    assert not column("date").stands_in("1871-05-03", ["Opened on 2 May 1871."])


@pytest.mark.parametrize(
    "wrong",
    [
        {"question": " "},
        {"question": "Q", "type": "choice"},
        {"question": "Q", "choices": ["a"]},
        {"question": "Q", "type": "choice", "choices": ["a", "A"]},
        {"question": "Q", "type": "choice", "choices": ["a\nb"]},
        {"question": "Q", "type": "money"},
    ],
)
def test_what_contradicts_itself_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Column.model_validate(wrong)
