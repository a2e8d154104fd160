"""The recipe of the ranker: what it reads, what it learns, and that it goes on where it was."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.errors import EvalError
from eval.reader.ranking import data
from eval.reader.ranking.calibrate import Asked, figures, fit, threshold_of
from eval.reader.ranking.data import Example, Passage
from eval.reader.ranking.train import Encoding, Reader, loss_of, questions, train
from retrieval.embedding.embedder import SentenceEmbedder
from retrieval.ranking.cross_encoder import CrossEncoder, windows

LAMPS = Passage(("The lamp was lit in 1871.", "It burns on the mole."))
SHIPS = Passage(("Ships came late.", "They carried granite."))
EXAMPLES = [
    Example("When was the lamp lit?", "lamps", ((LAMPS, frozenset([0])),), (1,)),
    Example("What did ships carry?", "ships", ((SHIPS, frozenset([1])),), (0,)),
]
POOL = [LAMPS, SHIPS]


@pytest.fixture(scope="module")
def minilm() -> Path:
    return SentenceEmbedder().folder


def by_words(texts: Sequence[str]) -> np.ndarray:
    """A stand-in for the encoder: texts with equal words are near."""
    vectors = np.zeros((len(texts), 64))
    for n, text in enumerate(texts):
        for word in text.lower().split():
            vectors[n, sum(map(ord, word)) % 64] += 1
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_selqa(path: Path, articles: int) -> Path:
    rows = [
        {
            "question": f"What is thing {n} of place {n}?",
            "article": f"article {n}",
            "candidates": [f"Thing {n} is the bell of place {n}.", "x " * 500, f"Place {n} has no gate."],
            "answers": [0],
        }
        for n in range(articles)
    ]
    path.write_text(json.dumps(rows))
    return path


def test_sections_are_cut_into_passages_and_marks_move_along(tmp_path: Path) -> None:
    example = data.read_selqa(write_selqa(tmp_path / "s.json", 1))[0]
    assert [marked for _, marked in example.passages] == [frozenset([0]), frozenset(), frozenset()]


def test_pairs_are_untokenised_and_stand_in_runs(tmp_path: Path) -> None:
    (tmp_path / "src").write_text("the lamp -lrb- of 1871 -rrb- is `` ours '' .\nthe lamp 's mole .\n")
    (tmp_path / "tgt").write_text("when was the lamp lit ?\nwhose mole is it ?\n")
    first, second = data.read_pairs(tmp_path / "src", tmp_path / "tgt")
    assert first.passages[0][0].sentences == ('the lamp (of 1871) is "ours".', "the lamp's mole.")
    assert [e.passages[0][1] for e in (first, second)] == [frozenset([0]), frozenset([1])]
    (tmp_path / "tgt").write_text("one ?\n")
    with pytest.raises(EvalError, match="lines"):
        data.read_pairs(tmp_path / "src", tmp_path / "tgt")


def test_no_article_is_in_both_sets_and_no_evaluated_text_in_either(tmp_path: Path) -> None:
    kept = {"data": [{"paragraphs": [{"context": "So thing 3 is the bell of place 3. They say so."}]}]}
    (tmp_path / "kept.json").write_text(json.dumps(kept))
    given = [write_selqa(tmp_path / "s.json", 20)], None, [tmp_path / "kept.json"], by_words, tmp_path / "near.json"
    sets = data.prepare(*given)
    articles = [{e.article for e in part} for part in (sets.train, sets.dev)]
    assert articles[0].isdisjoint(articles[1])
    assert articles[0] | articles[1] == {f"article {n}" for n in range(20) if n != 3}
    for example in sets.train:
        own = {s for passage, _ in example.passages for s in passage.sentences}
        assert all(own.isdisjoint(sets.pool[n].sentences) for n in example.other)
    assert data.prepare(*given) == sets  # from the cache
    with pytest.raises(EvalError, match="other questions"):
        data.prepare([write_selqa(tmp_path / "t.json", 5)], *given[1:])


def test_it_learns_and_what_is_saved_says_the_same(minilm: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Reader(minilm)
    stream = questions(EXAMPLES, POOL, Encoding(minilm), seed=0)
    rows = next(questions(EXAMPLES, POOL, Encoding(minilm), seed=0))
    with torch.inference_mode():
        before = loss_of(model(rows), rows).item()
    train(model, stream, tmp_path, minutes=5, steps=6, bf16=False)
    with torch.inference_mode():
        logits = torch.cat(model(rows)).tolist()
        assert loss_of(model(rows), rows).item() < before
    encoder = CrossEncoder(minilm, tmp_path, bfloat16=False)
    number, read = 0, []
    for passage in (LAMPS, SHIPS)[:: 1 if "lamp" in EXAMPLES[0].question and rows[0].marked == {0} else -1][
        : len(rows)
    ]:
        tokens = encoder.tokens(passage.sentences)
        read += windows([(ids, number + n) for n, ids in enumerate(tokens)])
        number += len(tokens)
    question = EXAMPLES[0 if rows[0].marked == {0} else 1].question
    found = encoder.scores(question, read)
    assert [found[n] for n in range(number)] == pytest.approx(logits, abs=5e-3)  # stored as float16


def test_it_goes_on_from_a_checkpoint(minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.reader.ranking.train.CHECKPOINT_STEPS", 1)

    def run(folder: Path, steps: Sequence[int]) -> Reader:
        folder.mkdir()
        for step in steps:
            torch.manual_seed(0)
            model = Reader(minilm)
            train(model, questions(EXAMPLES, POOL, Encoding(minilm), 0), folder, 60, 4, False, stop=step)
        return model

    whole, parts = run(tmp_path / "whole", [4]), run(tmp_path / "parts", [2, 4])
    for name, tensor in whole.changes().items():
        torch.testing.assert_close(parts.changes()[name], tensor, atol=1e-4, rtol=1e-3)


def test_the_logistic_model_is_fitted_and_the_threshold_keeps_its_promise() -> None:
    draw = np.random.default_rng(0)
    features = draw.normal(size=(4000, 2))
    marked = (draw.random(4000) < 1 / (1 + np.exp(-(2 * features[:, 0] - 1)))).astype(float)
    weights, bias = fit(features, marked)
    assert weights == pytest.approx([2, 0], abs=0.2)
    assert bias == pytest.approx(-1, abs=0.2)

    def asked(there: bool) -> Asked:
        return Asked("?", ["a", "b"], ["a b"] * 2, np.array([there, False]), True)

    random.seed(0)
    logits = [np.array([random.gauss(2 * there, 1), -5.0]) for there in [True] * 200 + [False] * 200]
    found = figures([asked(True)] * 200 + [asked(False)] * 200, logits)
    assert found["right"] == 1
    threshold = threshold_of(found["curve"])
    fooled = np.mean([1 / (1 + np.exp(-x.max())) >= threshold for x in logits[200:]])
    assert fooled <= 0.34
