"""The recipe of the ranker: what it reads, what it learns, and that it goes on where it was."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.errors import EvalError
from eval.reader.ranking import data
from eval.reader.ranking.calibrate import OWN, Asked, alone, asked_of_own, fall_of, figures, fit, threshold_of
from eval.reader.ranking.data import Example, Passage
from eval.reader.ranking.evaluate import Searched, without_answer
from eval.reader.ranking.train import Encoding, Reader, asked, changed, loss_of, questions, train
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
            "section": "Bells",
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
    assert {passage.context for passage, _ in example.passages} == {"article 0 › Bells"}


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


def test_some_are_asked_once_more_where_nothing_answers() -> None:
    draw = random.Random(0)
    found = [one for _ in range(200) for one in asked(EXAMPLES[0], POOL, draw)]
    sure = [read for question, read, answers in found if answers]
    assert len(sure) == 200
    assert all(read[0] == (LAMPS, frozenset([0])) for read in sure)
    bare = [read for question, read, answers in found if not answers and question == EXAMPLES[0].question]
    assert 30 < len(bare) < 90
    assert all(read == [(Passage(("It burns on the mole.",)), frozenset())] for read in bare)
    others = {question for question, read, answers in found if not answers} - {EXAMPLES[0].question}
    assert "When was the mole lit?" in others  # of which the whole passage is read, and does not answer


def test_a_changed_question_asks_with_a_word_of_the_passage() -> None:
    passage = Passage(("It burns on the mole since 1902.",))
    found = {changed("Which lamp of 1871?", passage, random.Random(n)) for n in range(40)}
    assert found == {"Which burns of 1871?", "Which mole of 1871?", "Which lamp of 1902?", "Which since of 1871?"}
    assert changed("Who is it?", passage, random.Random(0)) is None
    assert changed("Which lamp?", Passage(("It is on.",)), random.Random(0)) is None


def test_what_stands_above_is_read_and_not_scored(minilm: Path) -> None:
    encoding = Encoding(minilm)
    under = Passage(LAMPS.sentences, "The harbour")
    bare, whole = (encoding.row("Where?", passage, frozenset([1])) for passage in (LAMPS, under))
    assert [(a - 2, b - 2) for a, b in whole.spans] == list(bare.spans)
    assert (whole.marked, whole.lead) == (bare.marked, bare.lead)


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
    threshold = threshold_of([([asked(True)] * 200 + [asked(False)] * 200, logits)])
    answered = np.array([1 / (1 + np.exp(-x.max())) >= threshold for x in logits])
    assert answered[:200].mean() - answered[200:].mean() > 0.6  # 0.68 is what the two bells allow


def test_a_held_question_is_asked_of_its_own_passage_with_and_without_what_answers() -> None:
    sentences, passages = ["Old.", "Lit in 1871.", "Red.", "Ships."], ["Old. Lit in 1871. Red."] * 3 + ["Ships."]
    marks = np.array([False, True, False, False])
    held = Asked("When?", sentences, passages, marks, True)
    there, without = alone(
        [held, Asked("When?", sentences, passages, marks, True, "own text"), replace(held, marked=~held.marked & False)]
    )
    assert [q.sentences for q in there] == [["Old.", "Lit in 1871.", "Red."]]
    assert [(q.sentences, q.contexts) for q in without] == [(["Old.", "Red."], ["Old. Red."] * 2)]
    assert not without[0].marked.any()


def test_the_bound_falls_so_far_that_as_many_slip_through() -> None:
    draw = np.random.default_rng(0)
    many, few = ([draw.normal(size=size) for _ in range(2000)] for size in (40, 5))
    fall = fall_of(0.9, many, few)
    slips = [
        np.mean([x.max() >= bound for x in side]) for side, bound in ((many, 2.197), (few, 2.197 - fall * np.log(8)))
    ]
    assert slips[0] == pytest.approx(slips[1], abs=0.02)
    assert fall_of(0.9, many, []) == 0


def test_our_own_questions_are_asked_with_and_without_their_answer() -> None:
    found = asked_of_own(OWN, "minilm")
    there = [q for q in found if q.marked.any()]
    assert len(found) > 140
    assert len(there) >= 50
    assert all(q.fits and q.document and len(q.sentences) == len(q.contexts) for q in found)
    leek = next(q for q in there if q.question == "When is the leek harvested?")
    assert "Leek" in leek.sentences[int(leek.marked.argmax())]


def test_without_the_answer_its_passages_are_gone() -> None:
    found = Searched([True, False], ["a", "b", "c"], ["a b", "a b", "c"], [False, True, False])
    assert without_answer(found) == Searched([False], ["c"], ["c"], [False])
