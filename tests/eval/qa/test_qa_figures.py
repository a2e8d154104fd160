"""Answers held to their questions, where gold sentences stand, and how search finds them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eval.errors import EvalError
from eval.qa import ranking
from eval.qa.corpus import Corpus, Span, share, windows
from eval.qa.dataset import Dataset
from eval.qa.figures import scored, summarise
from eval.qa.judging import JudgedClaim
from eval.qa.replies import Reply

LIGHTHOUSE = "paragraph-0001.txt"


def place(corpus: Corpus, document: str, quote: str) -> Span:
    at = corpus.texts[document].index(quote)
    return (document, at, at + len(quote))


def whole(corpus: Corpus, document: str = LIGHTHOUSE) -> tuple[Span, ...]:
    """What was read: all of a document."""
    return ((document, 0, len(corpus.texts[document])),)


@pytest.fixture
def item(dataset: Dataset):
    return {item.id: item for item in dataset.items}


def test_gold_stands_where_the_text_has_it(corpus, item):
    ((place,),) = corpus.gold(item["q2"])
    assert corpus.text(place) == "Its lamp burnt colza oil until 1902."


def test_a_gold_sentence_that_the_text_lacks_is_named(dataset, tmp_path):
    changed = replace(dataset, items=(replace(dataset.items[0], gold=("It fell down.",)),))
    with pytest.raises(EvalError, match=r"gold sentence of q1 does not stand in paragraph-0001\.txt: 'It fell down\.'"):
        Corpus(changed, tmp_path, "minilm")


def test_a_file_is_read_by_its_own_suffix(tmp_path):
    (tmp_path / "a.csv").write_text("Number,Maker\n7,Ann\n", encoding="utf-8")
    with Corpus(Dataset("one", (), {"table": tmp_path / "a.csv"}), tmp_path / "home", "minilm") as corpus:
        assert corpus.texts == {"table": "Number: 7 | Maker: Ann"}


def test_a_right_answer_that_cites_its_sentence(corpus, item):
    said = "The lighthouse at Skerry Point was finished in 1871."
    row = scored(Reply("q1", said, "stop", read=whole(corpus)), item["q1"], corpus)
    assert [row[name] for name in ("right", "sentence_hit", "cited_gold", "printed_gold")] == [1, 1, 1, 1]
    assert [row[name] for name in ("false_refusal", "loop", "cut", "uncited")] == [0, 0, 0, 0]
    (claim,) = row["claims"]
    assert (claim["support"], claim["right"], claim["on_gold"]) == ("verbatim", True, True)


def test_a_wrong_answer_with_a_citation_of_something_else(corpus, item):
    said = "Its lamp burnt colza oil until 1902."
    cut = scored(Reply("q1", said[:-8], "length", read=whole(corpus)), item["q1"], corpus)
    assert [cut[name] for name in ("right", "sentence_hit", "cut", "uncited")] == [0, 0, 1, 1]
    row = scored(Reply("q1", said, "stop", read=whole(corpus)), item["q1"], corpus)
    assert [row[name] for name in ("right", "sentence_hit", "cut", "uncited")] == [0, 0, 0, 0]
    figures = summarise([row], [Reply("q1")])
    assert figures["citation_precision"] == {"score": 0.0, "stderr": 0.0, "n": 1}
    assert figures["citation_recall"]["n"] == 0
    assert figures["supported_not_right"] == [said]


def test_a_few_words_of_the_gold_sentence_cite_it_but_do_not_find_it(corpus, item):
    quote = place(corpus, LIGHTHOUSE, "finished in 1871")
    assert corpus.cites([quote], item["q1"])
    assert not corpus.covers([quote], item["q1"])
    assert not corpus.cites([place(corpus, LIGHTHOUSE, "colza oil")], item["q1"])


def test_refusals_are_false_or_honest_by_the_question(corpus, item):
    refusal = Reply("", "The documents do not say.", "stop")
    assert scored(refusal, item["q1"], corpus)["false_refusal"] == 1
    rows = [scored(refusal, item["none"], corpus), scored(Reply("", "Ann did."), item["none"], corpus)]
    figures = summarise(rows, [refusal, refusal])
    assert (figures["honest"]["score"], figures["honest"]["n"]) == (50.0, 2)
    assert figures["false_refusal"]["n"] == 0
    assert figures["misled"]["score"] == 0
    quoted = "A ticket costs four crowns."
    dressed = Reply("", quoted, read=whole(corpus, "paragraph-0002.txt"))
    assert scored(dressed, item["none"], corpus)["misled"] == 1


def test_right_claims_without_a_gold_citation_lower_recall(corpus, item, monkeypatch):
    gold = place(corpus, LIGHTHOUSE, "The lighthouse at Skerry Point was finished in 1871.")
    claims = [
        JudgedClaim("Finished in 1871.", "attributed", (gold,)),
        JudgedClaim("1871 it was.", "none", ()),
        JudgedClaim("It is large.", "attributed", (gold,)),
    ]
    monkeypatch.setattr("eval.qa.figures.judged", lambda *_: claims)
    figures = summarise([scored(Reply("q1", "1871"), item["q1"], corpus)], [Reply("q1")])
    assert figures["claims"] == 3
    assert figures["citation_precision"]["score"] == 100
    assert figures["citation_recall"]["score"] == 50
    assert figures["citation_recall"]["stderr"] == pytest.approx(50)


def test_a_failed_question_counts_and_is_counted(corpus, item):
    rows = [scored(Reply("q1", error="no room"), item["q1"], corpus)]
    figures = summarise(rows, [Reply("q1", error="no room")])
    assert (figures["failed"], figures["right"]["score"], figures["right"]["n"]) == (1, 0.0, 1)


def test_shares_of_a_span():
    assert share([("a", 0, 5), ("a", 3, 8), ("b", 8, 10)], ("a", 0, 10)) == 0.8
    assert share([("a", 20, 30)], ("a", 0, 10)) == 0


def test_naive_chunks_are_whole_words_or_signs():
    texts = {"a": "one two  three\nfour five", "b": "没有空格的文字没有空格的文字没有空格的文字"}
    found = [texts[name][start:end] for name, start, end in windows(texts, 2, 10)]
    assert found == ["one two  ", "three\nfour ", "five", "没有空格的文字没有空", "格的文字没有空格的文", "字"]


def test_ranks_of_the_gold_sentence_and_of_its_document(corpus, item):
    asked = [item["q1"], item["q2"], item["none"]]
    (start, end) = next((a, b) for _, a, b in corpus.gold(item["q1"])[0])
    right, elsewhere = (LIGHTHOUSE, start, end), (LIGHTHOUSE, end, len(corpus.texts[LIGHTHOUSE]))
    found = [[elsewhere, right], [("paragraph-0002.txt", 0, 40)], [right]]
    figures = ranking.figures(corpus, asked, found)
    assert figures["n"] == 2
    assert [figures[name]["score"] for name in ("hit@1", "hit@5", "mrr@10")] == [0, 50, 25]
    assert [figures[name]["score"] for name in ("document@1", "document@5")] == [50, 50]


def test_every_way_to_search_finds_what_shares_the_words(corpus, dataset):
    rows = {
        name: ranking.figures(corpus, dataset.items, found)
        for name, found in ranking.rankings(corpus, dataset.items, True)
    }
    assert [*rows][:3] == ["sparse", "dense", "hybrid"]
    assert {"bm25s, naive chunks", "encoder alone, naive chunks"} < {*rows}
    assert all(row["n"] == 4 and row["hit@5"]["score"] == 100 for row in rows.values())
