"""A cell: the value of an answer where the document carries it, else a blank that says why."""

from __future__ import annotations

from typing import Any

import pytest

from service.answering.answer import Answer
from service.tables.columns import Column
from service.tables.filling import cell_of

SAYS = "It cost 12,500 pounds."


def answer(text: str, *cited: str, support: str = "verbatim", verified: bool = True, **more: Any) -> Answer:
    """An answer with these citations, `verified` or not."""
    citations = [
        {"start": 0, "end": len(one), "page": 1, "place": "", "cited_text": one, "support": support}
        | {"verified": verified, "document": "d", "boxes": []}
        for one in cited
    ]
    return Answer(answer=text, citations=citations, verified=verified and bool(cited), **more)


NUMBER, TEXT = Column(question="What did it cost?", type="number"), Column(question="What?")
UNSUPPORTED = "nothing in the document supports the answer"


@pytest.mark.parametrize(
    ("column", "given", "value", "blank"),
    [
        (NUMBER, answer(f"12,500\n{SAYS}", SAYS), 12500, None),
        (NUMBER, answer(f"12,500\n{SAYS}"), None, UNSUPPORTED),
        (NUMBER, answer(f"12,500\n{SAYS}", SAYS, verified=False), None, UNSUPPORTED),
        (NUMBER, answer("13,000\nIt cost so much.", SAYS), None, UNSUPPORTED),
        (NUMBER, answer("not stated\nIt says nothing."), None, "the document does not say"),
        (NUMBER, answer("12,500", SAYS, refused=True), None, "the document does not say"),
        (NUMBER, answer("much\nIt cost much.", "It cost much."), None, "no single number in the answer"),
        (TEXT, answer(SAYS, SAYS), SAYS, None),
        (TEXT, answer(SAYS, SAYS, verified=False), None, UNSUPPORTED),
        (TEXT, answer(" "), None, "no single text in the answer"),
    ],
)
def test_a_value_needs_the_words_that_carry_it(column: Column, given: Answer, value: Any, blank: str | None) -> None:
    cell = cell_of(column, given, written=True)
    assert (cell["value"], cell["blank"], cell["answer"]) == (value, blank, given.answer)
    assert cell["support"] == ("none" if blank else "verbatim")


def test_a_text_that_is_carried_in_part_only_is_no_value() -> None:
    given = answer(f"{SAYS} Unicorns paid.", SAYS)
    given.verified = False
    assert cell_of(TEXT, given, written=True)["blank"] == UNSUPPORTED


def test_a_cell_is_verbatim_where_all_that_carries_it_is() -> None:
    assert cell_of(TEXT, answer(SAYS, SAYS, support="attributed"), written=True)["support"] == "attributed"
    [source] = cell_of(TEXT, answer(SAYS, SAYS), written=True)["citations"]
    assert source == {
        "start": 0, "end": len(SAYS), "page": 1, "place": "", "cited_text": SAYS, "support": "verbatim",
    }  # fmt: skip
