"""Examples are what they claim to be."""

import random

import pytest

from eval.reader.data import NOWHERE, Example, Maker, content, stems

DOCUMENTS = [
    [
        f"The {colour} {animal} of {place} carried {thing} towards the {goal} number {n}."
        for n, thing in enumerate(("lanterns", "barrels", "letters", "copper", "blankets", "timber"))
    ]
    for colour, animal in (("grey", "mule"), ("brown", "horse"), ("white", "camel"))
    for place, goal in (("Lisbon", "harbour"), ("Trieste", "railway"), ("Odessa", "lighthouse"))
]


def examples(count: int = 40) -> list[Example]:
    maker = Maker(DOCUMENTS)
    return [maker.example(random.Random(seed), 500, 12) for seed in range(count)]


def test_the_answer_holds_the_question_and_no_other_sentence_does() -> None:
    checked = 0
    for example in examples():
        index = [stems(s) for s in example.sentences]
        for question in example.questions:
            if question.kind not in ("keywords", "phrase", "gap"):
                continue
            asked = stems(question.text) & index[question.answer]
            assert len(asked) >= 2
            assert [i for i, words in enumerate(index) if asked <= words] == [question.answer]
            checked += 1
    assert checked > 100


def test_what_is_not_stated_is_not_there() -> None:
    found = [(e, q) for e in examples(80) for q in e.questions if q.answer == NOWHERE]
    assert len(found) > 10
    for example, question in found:
        asked = stems(question.text)
        assert not any(asked <= stems(sentence) for sentence in example.sentences)


@pytest.mark.parametrize("kind", ["fact", "passkey", "key–value"])
def test_planted_statements_hold_what_their_question_names(kind: str) -> None:
    planted = [(e, q) for e in examples(80) for q in e.questions if q.kind == kind]
    assert planted
    for example, question in planted:
        assert set(content(example.sentences[question.answer].lower())) & set(content(question.text.lower()))


def test_examples_depend_on_the_seed_alone() -> None:
    assert examples(5) == examples(5)
    assert len({e.sentences[0] for e in examples(10)}) > 1
