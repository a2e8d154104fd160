"""Counting right answers under attention policies: what is asked, and what is lost."""

import random
from dataclasses import replace

import pytest

from eval.bench.attention import accuracy
from eval.bench.attention.accuracy import PLANTED, TASKS, Options, make_example, run, summarise
from eval.errors import EvalError
from eval.reader.data import Maker

WORDS = [
    "river",
    "mountain",
    "garden",
    "window",
    "letter",
    "captain",
    "harbour",
    "lantern",
    "forest",
    "village",
    "market",
    "bridge",
]


@pytest.fixture
def maker():
    rng = random.Random(1)
    sentences = [f"The {' '.join(rng.sample(WORDS, 6))} was there in year {n}." for n in range(400)]
    return Maker([sentences])


@pytest.mark.parametrize("task", TASKS)
def test_an_example_has_its_questions_and_their_answers(maker, task):
    maker.names = [w.capitalize() for w in WORDS]
    example = make_example(maker, task, 3000, 4, random.Random(3))
    assert len(example.questions) == 4
    total = sum(map(maker.length, example.sentences))
    assert 2500 < total < 3300
    for question in example.questions:
        answer = example.sentences[question.answer]
        if task == "kv":
            assert question.text.split('"')[1] in answer
        elif task != "quote":
            assert question.text.removesuffix("?").split()[-1] in answer
    if task in PLANTED:
        planted = [s for s in example.sentences if "pass key" in s or "magic" in s or '": "' in s]
        assert len(planted) == 4 * PLANTED[task]


def test_losses_are_against_the_first_policy():
    def row(task, policy, right, length=4096):
        return {"task": task, "policy": policy, "right": right, "quoted": right - 1, "questions": 10, "density": 0.5,
                "length": length}  # fmt: skip

    rows = [row("kv", "dense", 10), row("kv", "quest", 8), row("kv", "dense", 9, 8192), row("kv", "quest", 9, 8192)]
    table = summarise(rows)
    assert table["dense"]["kv"]["right"] == 0.95
    assert table["dense"]["kv"]["right_points_lost"] == 0
    assert table["quest"]["kv"]["right_points_lost"] == pytest.approx(10.0)
    assert table["quest"]["kv"]["questions"] == 20


def test_a_run_goes_on_from_the_figures_of_an_earlier_one(monkeypatch, tmp_path):
    counted = []

    def answers(engine, packer, example, policy):
        counted.append((len(example.sentences), policy))
        return {"policy": policy, "questions": 2, "right": 1, "quoted": 1, "density": 1.0}

    monkeypatch.setattr(accuracy, "_answers", answers)
    text = tmp_path / "text.txt"
    words = (random.Random(n).sample(WORDS, 6) for n in range(400))
    text.write_text(" ".join(f"The {' '.join(six)} was there in year {n}." for n, six in enumerate(words)))
    two = Options(text=text, lengths=(1024,), policies=("dense", "auto"), tasks=("kv",), questions=2, seed=0)
    kept = []
    first = run(two, keep=kept.append)
    assert [figures["rows"] for figures in kept] == [first["rows"]]
    counted.clear()
    both = run(replace(two, lengths=(1024, 2048), policies=("dense", "auto", "quest")), first)
    assert [policy for _, policy in counted] == ["quest", "dense", "auto", "quest"]
    assert [row["policy"] for row in both["rows"]] == ["dense", "auto", "quest"] * 2
    assert both["rows"][:2] == first["rows"]
    with pytest.raises(EvalError, match="had seed=0, not 1"):
        run(replace(two, seed=1), first)


def test_unknown_tasks_are_refused(tmp_path):
    with pytest.raises(EvalError, match="unknown task 'rhyme'"):
        run(Options(text=tmp_path, tasks=("kv", "rhyme")))
