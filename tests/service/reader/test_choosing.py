"""How many sentences a question gets, and when it gets none."""

from collections.abc import Sequence

import numpy as np
import pytest

from service.reader.choosing import MOST, SentenceChooser

SENTENCES = ["Bees make honey.", "They dance.", "Wasps sting.", "Bees make honey.", "Ants dig."]


class Fixed:
    """Scores that are given."""

    def __init__(self, *scores: float) -> None:
        self.scores = np.array(scores, dtype=np.float32)

    def refuse_below(self, question: str, among: int) -> float:
        return 0.3

    def score(self, question: str, sentences: Sequence[str], contexts: Sequence[str], room: int) -> np.ndarray:
        assert len(sentences) == len(contexts) == len(self.scores)
        return self.scores


def chosen(question: str, *scores: float) -> tuple[int, ...]:
    return SentenceChooser(Fixed(*scores)).choose(question, SENTENCES, SENTENCES).sentences  # type: ignore[arg-type]


def test_the_best_alone_where_no_other_is_sure() -> None:
    assert chosen("What stings?", 0.1, 0.3, 0.9, 0.05, 0.4) == (2,)


def test_what_is_surely_an_answer_too_is_quoted_in_the_order_of_the_text() -> None:
    assert chosen("What stings?", 0.6, 0.1, 0.9, 0.05, 0.4) == (0, 2)


def test_two_that_may_answer_are_quoted_side_by_side_where_neither_is_sure() -> None:
    assert chosen("What stings?", 0.25, 0.1, 0.45, 0.3, 0.2) == (2, 3)
    assert chosen("What stings?", 0.17, 0.1, 0.45, 0.0, 0.0) == (2,)


@pytest.mark.parametrize(
    "question", ["How and why do they dance?", "List the insects.", "Who digs and what do they do?"]
)
def test_questions_for_several_things_get_more(question: str) -> None:
    assert chosen(question, 0.25, 0.1, 0.9, 0.05, 0.4) == (0, 2, 4)
    assert len(chosen(question, 0.5, 0.6, 0.7, 0.8, 0.9)) == MOST


def test_the_same_words_are_said_once() -> None:
    assert chosen("What do bees make?", 0.9, 0.1, 0.0, 0.8, 0.0) == (0,)


def test_below_the_threshold_nothing_is_quoted() -> None:
    choice = SentenceChooser(Fixed(0.1, 0.2, 0.29, 0.0, 0.0)).choose("What?", SENTENCES, SENTENCES)  # type: ignore[arg-type]
    assert choice.sentences == ()
    assert choice.probability == pytest.approx(0.29)
    assert choice.likely == (0, 1, 2, 3)


def test_no_sentences_are_a_refusal() -> None:
    assert SentenceChooser(Fixed()).choose("What?", [], []).sentences == ()  # type: ignore[arg-type]


def test_what_looks_like_a_name_is_quoted_only_where_nothing_else_answers_and_a_heading_never() -> None:
    def chosen(*scores: float, names: tuple[int, ...] = ()) -> tuple[int, ...]:
        told = ["Pages of KV", "## A page of KV", "CHAPTER II: PAGES", "A | page", "A page is a piece of the pool."]
        return SentenceChooser(Fixed(*scores)).choose("What is a page?", told, told, names).sentences  # type: ignore[arg-type]

    assert chosen(0.9, 0.8, 0.8, 0.1, 0.6) == (4,)
    assert chosen(0.9, 0.8, 0.8, 0.1, 0.1) == (0,)
    assert chosen(0.1, 0.8, 0.8, 0.1, 0.1) == ()
    assert chosen(0.1, 0.1, 0.1, 0.9, 0.6) == (3, 4)
    assert chosen(0.1, 0.1, 0.1, 0.9, 0.6, names=(3,)) == (4,)
