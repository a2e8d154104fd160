"""Of many sentences those are read that share words with the question, each behind the one before it."""

import numpy as np
import pytest

from retrieval.ranking.reading import cut, likeliest, pieces

SENTENCES = ["The lamp is old.", "It was lit in 1871.", "Nobody fishes.", "Ships came.", "They carried granite."]
CONTEXTS = ["The harbour\n" + " ".join(SENTENCES[:3])] * 3 + [" – ".join(SENTENCES[3:])] * 2


@pytest.mark.parametrize(
    ("best", "room", "read"),
    [
        ([1], 40, [0, 1]),  # what says what "it" is comes along
        ([3], 20, [3]),  # but not out of another passage
        ([1, 4], 60, [0, 1]),
        ([1, 4], 70, [0, 1, 3, 4]),
        ([1], 0, [0, 1]),  # one is always read
        ([2], 999, [0, 1, 2, 3, 4]),
    ],
)
def test_the_best_are_read_with_their_predecessors(best: list[int], room: int, read: list[int]) -> None:
    logits = np.array([2.0 - best.index(n) if n in best else -float(n + 1) for n in range(5)])
    assert likeliest(SENTENCES, CONTEXTS, logits, room) == read


def test_nothing_is_read_of_nothing() -> None:
    assert likeliest([], [], np.zeros(0), 100) == []


def test_what_is_not_read_is_cut_out_and_what_stands_above_stays() -> None:
    assert cut(SENTENCES, CONTEXTS, [1, 2, 3, 4]) == [
        "The harbour It was lit in 1871. Nobody fishes.",
        "The harbour It was lit in 1871. Nobody fishes.",
        CONTEXTS[3],
        CONTEXTS[3],
    ]
    assert cut(SENTENCES, CONTEXTS, [0, 4]) == ["The harbour The lamp is old.", "They carried granite."]
    assert cut(SENTENCES, CONTEXTS, range(5)) == CONTEXTS


def test_a_passage_is_its_sentences_and_what_stands_between_them() -> None:
    context = "The harbour\nThe lamp was lit. – It burns. (end)"
    assert pieces(context, ["The lamp was lit.", "It burns."]) == [
        ("The harbour\n", None),
        ("The lamp was lit.", 0),
        (" – ", None),
        ("It burns.", 1),
        (" (end)", None),
    ]
    assert pieces("other text", ["The lamp was lit."]) == [("The lamp was lit.", 0)]
