"""The kNN-LM and BM25 benches, small: they go on where they ended, and demand what they promise."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from eval.bench.retrieval import bm25, knn, knowledge_base
from eval.errors import EvalError

WORDS = ["the", "bridge", "mill", "ford", "gate", "river", "stone", "oak", "valley", "parish", "keeper", "arch"]


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(knowledge_base, "default_folders", list)
    folder = tmp_path / "texts"
    folder.mkdir()
    draw = random.Random(0)
    for number in range(40):
        (folder / f"{number}.txt").write_text(" ".join(draw.choice(WORDS) for _ in range(300)))
    (folder / "numbers.txt").write_text("12 34 56 " * 300)
    return [folder]


@pytest.mark.slow
def test_the_knn_bench_in_pieces(texts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "HELD_OUT", 4)
    small = knn.Options(entries=1000, text=tuple(texts), prompts=2, new_tokens=10, k=(3,), lists=8, probes=4)
    assert knn.run(replace(small, minutes=0), tmp_path) is None
    figures = knn.run(small, tmp_path)
    assert figures is not None
    assert figures["entries"] >= 1000
    assert [row["search"] for row in figures["rows"]] == ["exact", "approximate"]
    for row in figures["rows"]:
        assert row["identical"] == row["prompts"] == 2
        assert row["speedup"] > 0
        assert 0 < row["retrieval_share"] < 1
    assert 0 < figures["recall"]["3"] <= 1
    with pytest.raises(EvalError, match="--text"):
        knn.run(replace(small, entries=10**6), tmp_path)


def test_the_bm25_bench(texts: list[Path]) -> None:
    figures = bm25.run(bm25.Options(passages=120, text=tuple(texts), queries=10))
    assert figures["largest_difference_of_scores"] < 1e-5
    assert figures["same_top_10"] == 10
    assert set(figures["ms_per_query"]) == {"folio", "bm25s", "rank_bm25"}
