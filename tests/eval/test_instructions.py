"""Prompts for the training of drafters: many kinds, none twice, the same again for a seed."""

import json

import pytest
from typer.testing import CliRunner

from eval.cli import app
from eval.errors import EvalError
from eval.qa.dataset import Dataset, Item
from eval.tasks.instructions import instructions

TEXTS = {f"p{i}.txt": f"The bridge of village {i} was built in 19{i:02d} by Ada." for i in range(20)}
ASKED = Dataset(
    "villages", tuple(Item(str(i), f"p{i}.txt", f"Who built bridge {i}?", (("Ada",),), ()) for i in range(20)), TEXTS
)


def test_prompts_are_of_every_kind_none_twice_and_the_same_for_a_seed():
    made = instructions(120, 7, ASKED)
    assert len(set(made)) == len(made) == 120
    assert made == instructions(120, 7, ASKED)
    assert made != instructions(120, 8, ASKED)
    for words in (
        "Write a",
        "Imagine you are",
        "Python",
        "How ma",
        "Who built bridge",
        "Question: Who",
        "ummar",
        "List all",
    ):
        assert any(words in one for one in made), words
    assert not any("{" in one or "ranslate" in one for one in made)


def test_a_foreign_file_is_translated_and_long_paragraphs_are_left_out():
    foreign = Dataset("dörfer", (), {"a": "Die Brücke steht seit 1962.", "b": "Wort " * 200})
    made = instructions(2000, 0, ASKED, foreign)
    assert sum("Die Brücke steht seit 1962." in one for one in made) == 1
    assert not any("Wort Wort" in one for one in made)
    with pytest.raises(EvalError, match="villages"):
        instructions(5, 0, Dataset("villages", (), {"a": "Wort " * 200}))


def test_the_command_writes_what_folio_train_reads(tmp_path):
    data = {
        "title": "t",
        "paragraphs": [
            {
                "context": TEXTS["p1.txt"],
                "qas": [{"id": "1", "question": "Who built it?", "answers": [{"text": "Ada", "answer_start": 45}]}],
            }
        ],
    }
    (tmp_path / "squad.en.json").write_text(json.dumps({"version": "1", "data": [data]}))
    output = tmp_path / "prompts.jsonl"
    ran = CliRunner().invoke(
        app, ["instructions", str(tmp_path / "squad.en.json"), "--output", str(output), "--count", "9"]
    )
    assert ran.exit_code == 0, ran.output
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 9
    assert all(set(row) == {"prompt"} for row in rows)
