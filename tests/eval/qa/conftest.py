"""A small file of SQuAD's format, and its documents in a library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.qa.corpus import Corpus
from eval.qa.dataset import Dataset, load

PARAGRAPHS = {
    "The lighthouse at Skerry Point was finished in 1871. Its lamp burnt colza oil until 1902. Nobody lives there.": [
        ("In which year was the lighthouse finished?", "1871"),
        ("What did the lamp burn?", "colza oil"),
    ],
    "The ferry to Aldby leaves twice a day. A ticket costs four crowns. Dogs travel free of charge.": [
        ("What does a ticket cost?", "four crowns"),
    ],
    "Moss was gathered on the northern moor for the hospital. It was dried in the school and sent away by train.": [
        ("Where was the moss dried?", "in the school"),
    ],
}


def squad() -> dict:
    """Four questions with an answer and one without."""
    paragraphs, number = [], 0
    for text, asked in PARAGRAPHS.items():
        qas = []
        for question, answer in asked:
            number += 1
            place = {"text": answer, "answer_start": text.index(answer)}
            qas.append({"id": f"q{number}", "question": question, "answers": [place]})
        paragraphs.append({"context": text, "qas": qas})
    nothing = {"id": "none", "question": "Who painted the ferry?", "answers": [], "is_impossible": True}
    paragraphs[1]["qas"].append(nothing)
    return {"version": "1.1", "data": [{"title": "An island", "paragraphs": paragraphs}]}


@pytest.fixture(scope="session")
def squad_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("squad") / "island.en.json"
    path.write_text(json.dumps(squad()), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def dataset(squad_file: Path) -> Dataset:
    return load(squad_file)


@pytest.fixture(scope="session")
def corpus(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:
    with Corpus(dataset, tmp_path_factory.mktemp("library"), "minilm") as made:
        yield made
