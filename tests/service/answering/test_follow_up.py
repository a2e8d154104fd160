"""A follow-up gets the words that it leaves out; a question that stands alone gets none."""

from __future__ import annotations

import time

import pytest

from service.answering.follow_up import MOST_WORDS, stand_alone

BRIDGE = [
    ("user", "Who built the bridge at Hampton?"),
    ("assistant", "The bridge at Hampton was built by Ada Miller in 1862."),
]


def asked(*questions: str, answer: str = "") -> list[tuple[str, str]]:
    return [turn for question in questions for turn in (("user", question), ("assistant", answer))]


@pytest.mark.parametrize(
    "question",
    [
        "And how much does it weigh?",
        "How many arches does the bridge have?",
        "Who was the architect?",
        "Can carts cross it?",
        "Is there another one?",
        "Who lived there?",
    ],
)
def test_what_points_back_carries_the_thing_and_not_what_was_said_of_it(question: str) -> None:
    words = set(stand_alone(question, BRIDGE).removeprefix(question).split())
    assert "Hampton" in words
    assert not {"built", "1862"} & words


@pytest.mark.parametrize(
    "question",
    [
        "When was that?",
        "Why?",
        "And the mill?",
        "In which year?",
        "How many are there?",
        "Tell me more.",
        "And in 1920?",
    ],
)
def test_what_leaves_out_a_part_carries_all(question: str) -> None:
    query = stand_alone(question, BRIDGE)
    assert query.startswith(question)
    assert {"Hampton", "built", "bridge", "Ada"} <= set(query.split())


def test_the_answer_gives_the_person_and_the_thing_that_was_asked_for() -> None:
    assert stand_alone("Where was she born?", BRIDGE).endswith("Ada Miller")
    pump = [("user", "Which pump has the greatest head?"), ("assistant", "The Marlow 65 has it.")]
    assert "Marlow" in stand_alone("How much does it weigh?", pump).split()
    assert "Ada" not in stand_alone("How much does it weigh?", BRIDGE).split()


@pytest.mark.parametrize(
    "question",
    [
        "What is a page of KV?",
        "Who wrote News from Nowhere?",
        "And who wrote News from Nowhere?",
        "What is paging?",
        "What happens to a page when its reference count is zero?",
        "If the cut-out has stopped the motor, how is it started again?",
        "Is it true that the oldest oak stands behind the church?",
        "How many names are on the waiting list?",
        "What is this document about?",
        "Was ist ein Zeiger?",
        "Wann wurde die Mühle zerstört?",
        "¿Qué es la paginación?",
        "什么是分页注意力？",
    ],
)
def test_a_new_topic_is_searched_for_as_it_stands(question: str) -> None:
    assert stand_alone(question, BRIDGE) == question


@pytest.mark.parametrize(
    ("first", "answer", "follow_up", "words"),
    [
        ("Wer hat die Brücke in Hampton gebaut?", "Ada Miller.", "Und wie schwer ist sie?", "Brücke Hampton"),
        ("¿Quién construyó el puente de Hampton?", "Ada Miller.", "¿Y cuánto pesa?", "construyó puente Hampton"),
        ("Qui a construit le pont de Hampton ?", "Ada Miller.", "Combien d'arches a-t-il ?", "pont Hampton"),
    ],
)
def test_languages(first: str, answer: str, follow_up: str, words: str) -> None:
    query = stand_alone(follow_up, [("user", first), ("assistant", answer)])
    assert query.startswith(f"{follow_up} ")
    assert set(words.split()) <= set(query.split())


def test_chinese_carries_the_last_question_that_stands() -> None:
    turns = asked("谁建造了汉普顿的桥？", "它有多重？")
    assert stand_alone("那高度呢？", turns) == "谁建造了汉普顿的桥？ 那高度呢？"


def test_a_name_takes_the_place_of_the_name_before() -> None:
    turns = asked("How long is the Forth Bridge?", answer="The Forth Bridge is 2,467 metres long, at Queensferry.")
    query = stand_alone("And the Tay Bridge?", turns)
    assert "long" in query.split()
    assert not {"Forth", "Queensferry", "2,467"} & set(query.split())
    assert "Forth" in stand_alone("And in 1920?", turns)
    assert "1910" not in stand_alone("And in 1920?", asked("How many people lived at Leeds in 1910?"))


def test_a_conversation_keeps_its_topic_and_forgets_turns_in_between() -> None:
    turns = asked("Who designed the Forth Bridge?", "And how much does it weigh?", "How high are its towers?")
    words = set(stand_alone("What are they made of?", turns).split())
    assert {"Forth", "Bridge", "towers"} <= words
    assert "weigh" not in words


def test_the_names_of_the_answer_are_carried_and_its_numbers_are_not() -> None:
    words = set(stand_alone("Where was she born?", BRIDGE).split())
    assert {"Ada", "Miller"} <= words
    assert "1862" not in words


def test_who_was_meant_stays_meant() -> None:
    turns = [*BRIDGE, ("user", "Where was she born?"), ("assistant", "In Leeds.")]
    assert {"Ada", "Miller", "Leeds"} <= set(stand_alone("When did she die?", turns).split())


def test_a_new_topic_in_between_ends_the_old_one() -> None:
    turns = [*BRIDGE, *asked("Who wrote News from Nowhere?", answer="William Morris wrote it.")]
    words = set(stand_alone("When was he born?", turns).split())
    assert {"Nowhere", "William"} <= words
    assert not {"Hampton", "Ada"} & words


def test_what_is_carried_is_bounded_in_words_and_time() -> None:
    long = " ".join(f"Word{number}" for number in range(50_000))
    began = time.perf_counter()
    query = stand_alone("And why?", asked(*[f"What is {long}?"] * 200, answer=long))
    assert time.perf_counter() - began < 2
    assert len(query.split()) <= 2 + MOST_WORDS


@pytest.mark.parametrize("question", ["", "?", "…", "\U0001f4d6", "ما وزنها؟"])
def test_questions_without_words_of_a_known_language(question: str) -> None:
    assert stand_alone(question, BRIDGE).startswith(question)
    assert stand_alone(question, []) == question
