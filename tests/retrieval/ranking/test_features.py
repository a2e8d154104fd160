"""What is seen of a sentence without reading it."""

import numpy as np
import pytest

from retrieval.ranking.features import NAMES, content, holds, lexical

SENTENCES = ["The lamp was lit by Grace Darling in 1838.", "It stands on the mole.", "Who lit it first?", "Yes."]


def column(name: str, question: str, contexts: list[str] | None = None) -> list[float]:
    return lexical(question, SENTENCES, contexts)[:, NAMES.index(name)].tolist()


def test_words_are_shared_by_their_beginning_and_weigh_by_their_rarity() -> None:
    shared = column("shared", "Which lamps were lit?")
    assert shared[0] == pytest.approx(1.0)
    assert 0 < shared[2] < 0.5  # "lit" stands twice among the four, "lamp" once
    assert shared[1] == shared[3] == 0


def test_the_sentence_before_counts_within_a_passage_alone() -> None:
    together, apart = (column("shared_near", "Where is the lamp?", contexts) for contexts in (["a"] * 4, list("abcd")))
    assert together[1] == pytest.approx(1.0)
    assert apart[1] == 0


@pytest.mark.parametrize(
    ("kind", "question", "yes", "no"),
    [
        ("time", "When was it lit?", "It was lit in 1838.", "It was lit by Ada."),
        ("number", "How many lamps are there?", "There are seven lamps.", "There are lamps."),
        ("name", "Who lit it?", "The lamp was lit by Grace Darling.", "The lamp was lit at last."),
        ("reason", "Why was it lit?", "It was lit because ships were lost.", "It was lit."),
        ("money", "How much does the lamp cost?", "The lamp costs 12.50 a year.", "The lamp burns 40 hours."),
        ("money", "Was kostet die Lampe?", "Sie kostet 40 €.", "Sie brennt seit 1871."),
        ("mass", "How heavy is the lamp?", "Its mass is 19 kg.", "It is 19 m high."),
        ("telephone", "What is the keeper's telephone number?", "Call 0171 553-20.", "Ask for Ada at 12."),
        ("temperature", "At what temperature does it melt?", "It melts at 40 °C.", "It melts after 40 hours."),
    ],
)
def test_the_kind_of_answer(kind: str, question: str, yes: str, no: str) -> None:
    assert holds(kind, yes, question)
    assert not holds(kind, no, question)
    seen = lexical(question, [yes, no])
    assert seen[:, NAMES.index("kind_present")].tolist() == [1, 0]
    assert seen[:, NAMES.index("kind_absent")].tolist() == [0, 1]


def test_a_figure_of_the_question_that_the_passage_lacks_is_seen() -> None:
    contexts = ["The lamps of 1838. One was red."] * 2 + ["One was red in 1839."]
    sentences = ["The lamps of 1838.", "One was red.", "One was red in 1839."]
    seen = lexical("Which lamp was red in 1838?", sentences, contexts)
    assert seen[:, NAMES.index("figure_missing")].tolist() == [0, 0, 1]


def test_a_name_of_the_question_answers_nothing() -> None:
    assert not holds("name", "We know that Darling lit it.", "Whom did Darling marry?")


def test_questions_of_common_words_keep_them() -> None:
    assert content("Who is it?") == {"who", "is", "it"}


def test_what_has_no_words_is_finite() -> None:
    assert np.isfinite(lexical("???", ["...", ""])).all()
