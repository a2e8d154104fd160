"""The official scorers over InfiniteBench's published predictions give the published scores, digit for digit."""

from decimal import Decimal
from pathlib import Path

import pytest

from eval.scoring import score_file

MODELS = ("gpt4", "yarn-mistral", "yi-6b-200k", "chatglm3")
# Percent, as the official script prints them over these files (rounded half even to the digits shown).
V1 = {
    "passkey": ("100", "92.71", "100", "92.20"),
    "number_string": ("100", "56.61", "94.92", "80.68"),
    "kv_retrieval": ("89.0", "0", "0", "0"),
    "longdialogue_qa_eng": ("8.5", "7.5", "3.5", "2.5"),
    "longbook_choice_eng": ("67.25", "27.95", "36.68", "10.48"),
    "longbook_qa_eng": ("22.44", "9.55", "9.20", "3.62"),
    "longbook_qa_chn": ("25.96", "15.49", "15.07", "2.50"),
    "math_find": ("60.0", "17.14", "4.29", "7.71"),
    "math_calc": (".0137", None, ".0004", ".0004"),
    "code_run": ("23.25", "1.25", ".75", "0"),
    "code_debug": ("37.06", "15.48", "9.14", "7.36"),
}
V2 = V1 | {
    "code_debug": ("52.28", "23.60", "18.78", "11.68"),
    "longbook_choice_eng": ("68.12", "28.82", "36.68", "12.23"),
    "longdialogue_qa_eng": ("8.5", "8.5", "4.5", "2.5"),
}
# rouge_score 0.1.2 as Hugging Face evaluate 0.4.6 calls it.
ROUGE_LSUM = (14.728596576254034, 9.056026511005053, 0.9231122345027071, 0.837213864463822)


def cases() -> list:
    return [
        pytest.param(scorer, task, model, expected, id=f"{scorer}-{task}-{model}")
        for scorer, table in (("official_v1", V1), ("official_v2", V2))
        for task, row in table.items()
        for model, expected in zip(MODELS, row, strict=True)
        if expected is not None
    ]


def predictions(shared: Path, model: str, task: str) -> Path:
    return shared / "infinitebench_results" / model / f"preds_{task}.jsonl"


@pytest.mark.parametrize(("scorer", "task", "model", "expected"), cases())
def test_score_is_the_published_one(shared, scorer, task, model, expected):
    scored = score_file(predictions(shared, model, task), task, scorer)
    assert round(scored.score, -int(Decimal(expected).as_tuple().exponent)) == float(expected)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        pytest.param(*pair, marks=[pytest.mark.slow] if pair[0] == "yarn-mistral" else [])
        for pair in zip(MODELS, ROUGE_LSUM, strict=True)
    ],
)
def test_summaries_score_by_rouge_lsum(shared, model, expected):
    scored = score_file(predictions(shared, model, "longbook_sum_eng"), "longbook_sum_eng", "official_v1")
    assert scored.n == 103
    assert scored.score == pytest.approx(expected, abs=1e-9)


def test_stray_bytes_at_the_end_of_a_published_file_are_named_and_cost_no_record(shared):
    path = predictions(shared, "yarn-mistral", "longbook_qa_chn")
    scored = score_file(path, "longbook_qa_chn", "official_v1")
    assert scored.n == 189
    assert [(problem.line, "'gi'" in problem.message) for problem in scored.problems] == [(189, True)]


def test_fixed_scorer_gives_every_published_file_a_score(shared):
    for task in V1:
        for model in MODELS:
            path = predictions(shared, model, task)
            if path.exists():
                fixed = score_file(path, task, "fixed")
                assert 0 <= fixed.score <= 100
                assert len(fixed.problems) == (task == "longbook_qa_chn" and model == "yarn-mistral")
