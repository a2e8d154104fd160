"""How answers are compared: SQuAD's and MLQA's rules, right, printed, and loops."""

from __future__ import annotations

import pytest

from eval.qa.scoring import best_f1, exact_match, holds, loops, plain, prints


@pytest.mark.parametrize(
    ("language", "answer", "reference", "same"),
    [
        ("en", "The  Colza-oil!", "colzaoil", 1.0),
        ("en", "the year 1871", "1871", 0.0),
        ("de", "Der Kessel, den wir meinen", "Kessel wir meinen", 1.0),
        ("es", "la torre (1889)", "torre 1889", 1.0),
        ("zh", "三十天。", "三十天", 1.0),
        ("zh", "三十天", "三十日", 0.0),
        ("ar", "الكتاب", "كتاب", 1.0),
        ("de", "the end", "end", 0.0),  # articles are those of the language
    ],
)
def test_exact_match_by_the_rule_of_the_language(language, answer, reference, same):
    assert exact_match(answer, [reference, "something else"], language) == same


def test_f1_counts_words_and_of_chinese_signs():
    assert best_f1("It was finished in 1871 [2].", ["1871", "in 1871"], "en") == pytest.approx(2 * 0.4 * 1 / 1.4)
    assert best_f1("借期为三十天", ["三十天"], "zh") == pytest.approx(2 * 0.5 * 1 / 1.5)
    assert best_f1("no", ["yes"], "en") == 0.0


def test_marks_of_citation_are_no_words_of_the_answer():
    assert plain('"So it is" [2, 3]. Yes [12].') == '"So it is" . Yes .'


@pytest.mark.parametrize(
    ("text", "accepted", "held"),
    [
        ("Six were killed.", [["six"]], True),
        ("Sixteen were killed.", [["six"]], False),
        ("It weighs 31\u00a0kg.", [["31 kg"]], True),
        ("It weighs 131 kg.", [["31 kg"]], False),
        ("By Stokes in 1847.", [["Stokes", "1847"]], True),
        ("By Stokes in 1850.", [["Stokes", "1847"]], False),
        ("每人最多可借十五册图书", [["十五册"]], True),
        ("About 20%.", [["20%"]], True),
        ("Priya\nRaman", [["Priya Raman"]], True),
        ("anything", [], False),
    ],
)
def test_an_accepted_answer_stands_as_whole_words(text, accepted, held):
    assert holds(text, accepted) is held


def test_a_sentence_is_printed_whatever_line_ends_are_in_it():
    sentence = "The use of the compass was not intro\u00adduced into\nEurope."
    assert prints("He says: “The use of the compass was not introduced into Europe” [1].", sentence)
    assert not prints("The use of the compass was introduced into Europe.", sentence)
    assert not prints("anything", "...")


@pytest.mark.parametrize(
    ("text", "round_"),
    [
        ("the end of the end of the end of the end of", True),
        ("我们不知道我们不知道我们不知道", True),
        ("It is so. The moon is old. It was so. The moon is old. It will be so. The moon is old.", True),
        ("No, no, no, it is not.", False),
        ("The oil is changed every 2,500 hours of running or every two years, whichever comes first.", False),
        ("", False),
    ],
)
def test_a_loop_is_a_stretch_three_times_in_a_row_or_a_sentence_three_times(text, round_):
    assert loops(text) is round_
