"""Scorers on the cases that tell them apart, and on input of odd types."""

import json
import math

import pytest
from typer.testing import CliRunner

from eval.cli import app
from eval.errors import EvalError
from eval.scoring import SCORERS, score_file, score_one, tasks_of
from eval.scoring.text import rouge_lsum


@pytest.mark.parametrize(
    ("task", "prediction", "label", "v1", "v2", "fixed"),
    [
        ("passkey", "The key 12345, not 54321", "12345", 1, 1, 1),
        ("passkey", "1 key: 12345", "12345", 0, 0, 1),
        ("number_string", "0012345678", "12345678", 0, 0, 0),
        ("kv_retrieval", '"ab-1".', "ab-1", 1, 1, 1),
        ("kv_retrieval", "`ab-1`", "ab-1", 0, 0, 1),
        ("kv_retrieval", "ab-12", "ab-1", 0, 0, 0),
        ("longbook_choice_eng", "According to the text, C", ["x", "A"], 1, 1, 0),
        ("longbook_choice_eng", "According to the text, C", ["x", "C"], 0, 1, 1),
        ("longbook_choice_eng", "(B)", ["x", "B"], 0, 1, 1),
        ("longbook_choice_eng", "**B**", ["x", "B"], 0, 1, 1),
        ("longbook_choice_eng", "The answer is B, not C", ["x", "B"], 1, 1, 1),
        ("longbook_choice_eng", "", ["x", "A"], 0, 0, 0),
        ("longdialogue_qa_eng", "It is Remo.", ["GAGGI", "Remo"], 0, 1, 1),
        ("longdialogue_qa_eng", "Aces", ["ACE"], 0, 1, 0),
        ("longdialogue_qa_eng", "ace Rothstein", ["Ace Rothstein"], 0, 1, 1),
        ("code_debug", "B. name", ["name", "B"], 1, 1, 1),
        ("code_debug", "B", ["name", "B"], 0, 1, 1),
        ("code_debug", "The answer is: name", ["name", "B"], 1, 1, 1),
        ("code_run", "The value is **-5**", -5, 0, 0, 1),
        ("code_run", "The return value is: -5.", -5, 1, 1, 1),
        ("math_find", "-88", 88, 1, 1, 0),
        ("math_find", "88.0", 88, 0, 0, 1),
        ("math_find", "It is 54.5", 54.5, 1, 1, 1),
        ("math_calc", "[1, 2, 4]", [1, 2, 3, 4], 0.5, 0.5, 0.5),
        ("math_calc", "[9, 1, 2, 3]", [1, 2, 3, 4], 0, 0, 0.75),
        ("longbook_qa_eng", "the cat a. sat", ["a cat sat"], 1, 1, 1),
        ("longbook_qa_chn", "张三，李四", ["张三李四"], 1, 1, 1),
    ],
)
def test_versions_differ_where_they_are_known_to(task, prediction, label, v1, v2, fixed):
    assert [score_one(task, scorer, prediction, label) for scorer in SCORERS] == [v1, v2, fixed]


def test_math_calc_of_gpt4_drops_the_first_number():
    assert score_one("math_calc", "official_v1", "[9, 1, 2]", [1, 2], model_name="gpt4") == 1
    assert score_one("math_calc", "official_v1", "[9, 1, 2]", [1, 2]) == 0


def test_rouge_lsum_takes_the_best_reference_and_splits_at_newlines():
    assert rouge_lsum("a b\nc d", ["x", "c d\na b"]) == 1
    assert rouge_lsum("a b c d", "c d\na b") == pytest.approx(1)
    assert rouge_lsum("a b c d", "c d a b") == 0.5


def test_ruler_scores_the_share_of_references():
    assert score_one("vt-style", "official_v1", "abcde and FGHIJ", ["ABCDE", "FGHIJ", "KLMNO", "PQRST"]) == 0.5


@pytest.mark.parametrize(
    ("task", "said", "right", "score"),
    [
        ("T3.2 Single-Hop Fact QA", "Reasons.\n[Answer]\n b  TWO\nmore", ["B two", "x"], 1),
        ("T3.2 Single-Hop Fact QA", "[Answer] A [答案] B", ["B"], 0),  # the English mark comes first
        ("T11.1 Long-Range Entity & Commitment Tracking", "[答案]\n甲", ["甲"], 1),
        ("T8.2 Single-Source Targeted Aggregation", "1\n3\n4", ["1", "2", "3", "5"], 0.5),
        ("T5.1 Full-Sentence Citation Alignment", "1\n3\n4\n4", ["1", "2", "3"], 2 / 3),
        ("T2.1 Global Timeline Reconstruction", "a\nc\nb", ["a", "b", "c"], 2 / 3),
        ("T2.1 Global Timeline Reconstruction", "a\nb\nc\nd", ["a", "b", "c"], 3 / 6),
        ("T2.1 Global Timeline Reconstruction", "a", ["a", "b"], 0),
        ("T1.1 Global Cohesive Retrieval", "a\nb", ["a", "b"], 1),
        ("T1.1 Global Cohesive Retrieval", "b\na\nc", ["a", "b"], (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))),
        ("T1.1 Global Cohesive Retrieval", "x\ny\na", ["a", "b"], 0),
        ("T1.1 Global Cohesive Retrieval", " ", ["a", "b"], 0),
    ],
)
def test_longbench_pro_holds_lines_to_lines(task, said, right, score):
    assert score_one("longbench_pro", "fixed", said, {"task": task, "answer": right}) == pytest.approx(score)


def test_longbench_v2_reads_its_own_sentence():
    assert score_one("longbench_v2", "official_v1", "**The correct answer is (B).**", "B") == 1
    assert score_one("longbench_v2", "official_v1", "B", "B") == 0


@pytest.mark.parametrize("task", tasks_of())
@pytest.mark.parametrize("prediction", ["", None, 7, "é漢\x00" * 50, "A. B: C 1 -2 {\"x\": 'y'}"])
def test_any_text_is_scored_between_zero_and_one(task, prediction):
    base = task.removesuffix("-style")
    of_pro = {"task": "T3.2 Single-Hop Fact QA", "answer": ["B"]}
    labels = {"math_find": 3, "code_run": 3, "math_calc": [1, 2], "coreference": "code text", "longbench_pro": of_pro}
    label = "Mary" if base.startswith("babi_") else labels.get(base, ["name", "B"])
    for scorer in SCORERS:
        assert 0 <= score_one(task, scorer, prediction, label) <= 1


@pytest.mark.parametrize(
    ("task", "label"), [("math_find", "x"), ("code_debug", 3), ("math_calc", 5), ("longbook_qa_eng", 3.5)]
)
def test_a_label_of_an_odd_type_is_named(task, label):
    with pytest.raises(EvalError, match=task):
        score_one(task, "official_v1", "3", label)


def test_a_prediction_of_an_odd_type_is_named():
    with pytest.raises(EvalError, match="list"):
        score_one("passkey", "official_v1", ["12345"], "12345")


def write(tmp_path, *lines):
    path = tmp_path / "preds_passkey.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


def test_records_that_cannot_be_scored_count_zero_and_lines_that_are_none_are_skipped(tmp_path):
    good = {"id": 0, "prediction": "12345", "ground_truth": "12345"}
    path = write(
        tmp_path,
        good,
        b"gi",
        {"id": 1, "prediction": ["12345"], "ground_truth": "12345"},
        {"id": 2, "pred": "12345", "label": "12345"},
        {"id": 3, "ground_truth": "12345"},
        b"[1, 2]",
        b'{"id": 4, "prediction": "12345 \xff", "ground_truth": "12345"}',
        b'{"id": 5, "predic',
    )
    scored = score_file(path, "passkey", "official_v1")
    assert scored.ids == [0, 1, 2, 3, 4]
    assert scored.per_example == [100, 0, 100, 0, 100]
    assert scored.score == 60
    assert [problem.line for problem in scored.problems] == [2, 3, 5, 6, 7, 8]


def test_score_command_gives_its_json(tmp_path):
    path = write(tmp_path, {"id": "a", "prediction": "12345", "ground_truth": "12345"})
    result = CliRunner().invoke(app, ["score", "--task", "passkey", "--scorer", "official_v1", str(path), "--json"])
    found = json.loads(result.stdout)
    assert {key: found[key] for key in ("task", "scorer", "n", "score", "per_example")} == {
        "task": "passkey",
        "scorer": "official_v1",
        "n": 1,
        "score": 100.0,
        "per_example": [100.0],
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task", "paskey", "x.jsonl"], "unknown task 'paskey'"),
        (["--task", "passkey", "--scorer", "v3", "x.jsonl"], "unknown scorer 'v3'"),
        (["--task", "passkey", "x.jsonl"], "cannot read x.jsonl"),
    ],
)
def test_bad_input_is_named(arguments, said):
    result = CliRunner().invoke(app, ["score", *arguments])
    assert isinstance(result.exception, EvalError)
    assert said in result.exception.message


def test_an_empty_file_is_an_error(tmp_path):
    path = tmp_path / "empty.jsonl"
    path.touch()
    with pytest.raises(EvalError, match="no predictions"):
        score_file(path, "passkey", "fixed")
