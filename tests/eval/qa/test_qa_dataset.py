"""Questions read from files of both formats, and what is refused before anything heavy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.errors import EvalError
from eval.figures import ROOT
from eval.qa.corpus import _Folded
from eval.qa.dataset import load
from eval.qa.scoring import holds
from retrieval.parsing import parse

QUESTIONS = ROOT / "eval" / "qa" / "questions"
OWN = ("own.dev", "own.heldout", "follow_ups.dev", "follow_ups.heldout")


def test_squad_gives_documents_questions_and_the_sentence_that_holds_the_answer(dataset):
    assert [*dataset.documents] == ["paragraph-0001.txt", "paragraph-0002.txt", "paragraph-0003.txt"]
    oil = next(item for item in dataset.items if item.answers == (("colza oil",),))
    assert (oil.document, oil.gold) == ("paragraph-0001.txt", ("Its lamp burnt colza oil until 1902.",))
    assert [item.id for item in dataset.items if item.unanswerable] == ["none"]


def test_the_language_is_told_by_the_name_or_by_the_user(squad_file, tmp_path):
    german = tmp_path / "island.de.json"
    german.write_bytes(squad_file.read_bytes())
    assert {item.language for item in load(german).items} == {"de"}
    assert {item.language for item in load(german, "es").items} == {"es"}


def test_a_draw_is_the_seeds_and_keeps_the_order(dataset):
    drawn = dataset.sample(3, seed=1)
    assert drawn.items == dataset.sample(3, seed=1).items
    assert len({dataset.sample(3, seed=seed).items for seed in range(8)}) > 1
    assert sorted(drawn.items, key=dataset.items.index) == list(drawn.items)
    assert dataset.sample(99, seed=0) is dataset


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.json", None, "cannot read"),
        ("broken.json", "{", "is not JSON"),
        ("list.json", "[1]", "neither of SQuAD's format nor of ours"),
        ("rows.json", '{"data": [{"paragraphs": [{"qas": []}]}]}', "not of SQuAD's format: KeyError('context')"),
        ("nothing.json", '{"data": []}', "holds no questions"),
        ("own.json", '{"format": "folio-qa/1", "documents": {}, "questions": [{"id": "a"}]}', "not of our format"),
        ("own.json", '{"format": "folio-qa/1", "documents": {"b": "b.txt"}, "questions": []}', "document that is not"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(name, content, said, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(EvalError, match=r"(?s)" + said.replace("(", r"\(").replace(")", r"\)")):
        load(path)


def test_a_language_without_rules_is_refused(squad_file):
    with pytest.raises(EvalError, match="no rule to compare answers in the language 'xx'"):
        load(squad_file, "xx")


def test_an_answer_in_parts_and_earlier_turns_are_read(tmp_path):
    (tmp_path / "a.txt").write_text("Ann won in 1990.", encoding="utf-8")
    question = {
        "id": "1",
        "document": "a",
        "question": "Who, and when?",
        "answers": ["both", ["Ann", "1990"]],
        "gold": ["Ann won in 1990."],
        "history": [{"question": "Did somebody win?", "answer": "Yes."}],
    }
    path = tmp_path / "q.json"
    body = {"format": "folio-qa/1", "documents": {"a": "a.txt"}, "questions": [question]}
    path.write_text(json.dumps(body), encoding="utf-8")
    (item,) = load(path).items
    assert item.answers == (("both",), ("Ann", "1990"))
    assert [(turn.question, turn.answer) for turn in item.history] == [("Did somebody win?", "Yes.")]


def test_our_own_questions_are_sixty_and_twenty():
    own = [json.loads((QUESTIONS / f"{name}.json").read_text(encoding="utf-8"))["questions"] for name in OWN]
    assert [len(questions) for questions in own] == [30, 30, 10, 10]
    assert [sum(question.get("unanswerable", False) for question in questions) for questions in own] == [6, 6, 0, 0]
    assert all(len(question["history"]) == 1 for questions in own[2:] for question in questions)
    ids = [(name, question["id"]) for name, questions in zip(OWN, own, strict=True) for question in questions]
    assert len(set(ids)) == 80


@pytest.fixture(scope="module")
def stored(shared: Path) -> dict[str, _Folded]:
    """The text of every document as the library stores it."""
    files = load(QUESTIONS / "own.dev.json").documents
    return {name: _Folded(parse(file.read_bytes(), file.name).text) for name, file in files.items()}


@pytest.mark.parametrize("name", OWN)
def test_every_gold_sentence_stands_in_its_document_and_holds_the_answer(name, stored):
    for item in load(QUESTIONS / f"{name}.json").items:
        for gold in item.gold:
            assert [*stored[item.document].find(gold)], (item.id, gold)
        assert item.unanswerable or holds(" ".join(item.gold), item.answers), item.id


def test_halves_part_the_questions_and_keep_the_documents(dataset):
    first, second, both = (dataset.half(which) for which in ("first", "second", None))
    assert [item.document for item in first.items] == ["paragraph-0001.txt"] * 2
    assert [*first.items, *second.items] == [*both.items] == [*dataset.items]
    assert first.documents == second.documents == dataset.documents
