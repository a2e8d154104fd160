"""`folio eval conversation`: figures of second turns by what is searched for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eval.cli import app
from eval.errors import EvalError
from eval.qa.conversation import DATA, WAYS, measure
from eval.qa.dataset import load

TEXTS = {
    "light.txt": "The lighthouse at Skerry Point was finished in 1871. Its lamp burnt colza oil until 1902.",
    "ferry.txt": "The ferry to Aldby leaves twice a day. A ticket costs four crowns.",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One second turn."""
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text)
    turn = {
        "id": "lamp",
        "document": "light",
        "question": "And what did it burn?",
        "answers": ["colza oil"],
        "gold": ["Its lamp burnt colza oil until 1902."],
        "history": [{"question": "When was the lighthouse at Skerry Point finished?", "answer": "In 1871."}],
    }
    documents = {name.removesuffix(".txt"): name for name in TEXTS}
    path = tmp_path / "turns.json"
    path.write_text(json.dumps({"format": "folio-qa/1", "name": "t", "documents": documents, "questions": [turn]}))
    return path


def test_every_way_is_measured_and_says_what_it_searched_for(file: Path, tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    flags = ["--data", str(file), "--library", str(tmp_path / "library"), "--output", str(output)]
    said = CliRunner().invoke(app, ["conversation", *flags])
    assert said.exit_code == 0, said.output
    rows = json.loads(output.read_text())["figures"]["rows"]
    assert [row["way"] for row in rows] == list(WAYS)
    asked = {row["way"]: row["queries"]["lamp"] for row in rows}
    assert asked["follow-up alone"] == "And what did it burn?"
    assert asked["both questions"] == "When was the lighthouse at Skerry Point finished? And what did it burn?"
    assert {"lighthouse", "Skerry", "Point"} <= set(asked["rule"].split())
    assert all(row["n"] == row["hit@5"]["n"] == 1 for row in rows)
    assert rows[-1]["hit@1"]["score"] == 100


def test_a_question_without_a_turn_before_it_is_refused(file: Path, tmp_path: Path) -> None:
    kept = json.loads(file.read_text())
    del kept["questions"][0]["history"]
    file.write_text(json.dumps(kept))
    with pytest.raises(EvalError, match="lamp of t has no turn before it"):
        measure([file], tmp_path / "library", "minilm")


def test_the_questions_kept_are_second_turns() -> None:
    for path in DATA:
        assert all(item.history and item.gold for item in load(path).items)
