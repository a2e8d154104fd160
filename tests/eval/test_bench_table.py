"""The benchmark of tables: what each way reads, and that all of them give the same cells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.bench.serving.table import Options, run
from eval.errors import EvalError

PLACES = ("Avon", "Bude", "Cork", "Deal")


@pytest.fixture
def paragraphs(tmp_path: Path) -> Path:
    path = tmp_path / "towns.en.json"
    towns = [
        {"context": f"The bridge at {place} was built in 1{n}2. It has {n} arches of grey stone.", "qas": [ASKED]}
        for n in range(100, 110)
        for place in PLACES
    ]
    path.write_text(json.dumps({"data": [{"paragraphs": towns}]}))
    return path


ASKED = {"id": "1", "question": "When was it built?", "answers": [{"text": "built", "answer_start": 24}]}


@pytest.mark.slow
def test_a_table_reads_each_document_once(paragraphs: Path) -> None:
    figures = run(Options(data=paragraphs, model="smollm2", documents=2, questions=2, characters=1200, answer_tokens=4))
    alone, in_turn, table = figures["rows"]
    assert [row["way"] for row in figures["rows"]] == ["alone", "in turn, prefix cache", "table"]
    assert alone["tokens_read"] > 1.5 * table["tokens_read"]
    assert in_turn["tokens_read"] == table["tokens_read"]
    assert {row["cells_as_in_table"] for row in figures["rows"]} == {1.0}
    assert alone["table_is_faster"] == alone["seconds"] / table["seconds"]


def test_a_file_that_is_too_short_is_refused(paragraphs: Path) -> None:
    with pytest.raises(EvalError, match="makes only 1 documents"):
        run(Options(data=paragraphs, characters=2000))
