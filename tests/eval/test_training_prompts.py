"""Prompts for the training of drafters: of many kinds, the same for a seed, short enough to be answered."""

from __future__ import annotations

import json
import sys

import pytest

from eval.training_prompts import main, prompts


@pytest.fixture
def xquad(tmp_path):
    for language in ("en", "de"):
        paragraphs = [
            {
                "context": f"{language} {i}. " + "A sentence. " * (90 if i % 2 else 9),
                "qas": [{"question": f"Who was {i}?"}],
            }
            for i in range(240)
        ]
        (tmp_path / f"xquad.{language}.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return tmp_path


def test_they_are_of_every_kind_and_the_same_for_a_seed(xquad):
    found = prompts(xquad)
    assert 520 < len(found) == len(set(found)) < 580
    assert found == prompts(xquad)
    assert found != prompts(xquad, seed=1)
    for kind in (
        "story",
        "Imagine you are",
        "Python",
        "How many",
        "Who was",
        "Question:",
        "Summarize",
        "German",
        "facts",
    ):
        assert sum(kind in text for text in found) > 3, kind
    assert max(map(len, found)) < 1000
    assert sum(text.startswith("Who was") for text in found) == 100


def test_they_are_written_as_a_training_reads_them(xquad, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["", str(xquad), str(tmp_path / "prompts.jsonl")])
    main()
    lines = (tmp_path / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == prompts(xquad)
