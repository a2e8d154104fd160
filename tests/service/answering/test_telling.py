"""The sentences that tell most of a text: near to all of it, unlike one another, and whole."""

from __future__ import annotations

import pytest

from service.answering.telling import telling

BRIDGE = [
    "The bridge at Hampton crosses the river Avon below the mill.",
    "Ada Miller built the bridge at Hampton of grey stone in 1862.",
    "The bridge at Hampton has seven arches of grey stone over the river.",
    "Visitors may buy lemonade and postcards on summer afternoons.",
]


def chosen(text: str, wanted: int) -> list[str]:
    return [text[start:end] for start, end in telling(text, wanted)]


def test_what_most_sentences_speak_of_comes_before_what_one_does() -> None:
    found = chosen(" ".join(BRIDGE), 3)
    assert found == BRIDGE[:3], "in the order of the text, and without the lemonade"


def test_what_is_said_is_not_said_again() -> None:
    again = "In 1862 the bridge at Hampton was built by Ada Miller of grey stone."
    found = chosen(" ".join([*BRIDGE[:2], again, BRIDGE[3]]), 2)
    assert not (BRIDGE[1] in found and again in found)


@pytest.mark.parametrize(
    "sentence",
    [
        "It has seven arches of grey stone over the river.",
        "However the bridge at Hampton was closed to carts in 1901.",
        "Does the bridge at Hampton cross the river Avon below the mill?",
        "- The bridge at Hampton crosses the river Avon",
        'Ada said: "The bridge at Hampton crosses the river Avon below the mill."',
        'The bridge at Hampton crosses the river Avon below the mill."',
        "The bridge at Hampton.",
        "The bridge at Hampton crosses " + "the very long river " * 30 + "Avon.",
    ],
)
def test_what_leans_on_others_asks_or_is_none_stands_for_nothing(sentence: str) -> None:
    assert chosen(sentence, 3) == []


def test_a_text_has_as_many_as_it_has() -> None:
    assert chosen("", 3) == []
    assert len(chosen(" ".join(BRIDGE), 20)) == 4


@pytest.mark.parametrize(
    "text",
    [
        "Die Brücke in Hampton überquert den Fluss unterhalb der Mühle. Ada Miller baute 1862 die Brücke in Hampton.",
        "汉普顿的桥在磨坊下面跨越埃文河。艾达·米勒于1862年用灰色石头建造了汉普顿的桥。",
    ],
)
def test_other_languages_have_sentences_too(text: str) -> None:
    assert len(chosen(text, 2)) == 2
