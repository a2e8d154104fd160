"""Probabilities of sentences and passages, whatever reads them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from retrieval.embedding.embedder import SentenceEmbedder
from retrieval.errors import UnknownRanker
from retrieval.ranking.features import NAMES
from retrieval.ranking.ranker import READ_CHARS, USUAL, Logistic, SentenceRanker, _standard, find_ranker, load_ranker
from retrieval.ranking.reranking import reranked
from retrieval.types import Hit

LAMP = "The lamp on the northern mole was lit in 1871 by the keeper's daughter."
OTHERS = [
    "Granite came from the islands by ship.",
    "The harbour master lives in the old town.",
    "Nobody may fish from the moles after dark.",
]


@pytest.fixture(scope="module")
def ranker() -> SentenceRanker:
    return load_ranker(None)


class Counting:
    """Reads nothing, and says what it was given."""

    name = "counting"
    columns = ("logit",)

    def __init__(self) -> None:
        self.seen: list[str] = []

    def knows(self, question: str) -> bool:
        return "lampe" not in question

    def read(self, question: str, sentences: Sequence[str], contexts: Sequence[str], seen: np.ndarray) -> np.ndarray:
        self.seen = list(sentences)
        return np.ones((len(sentences), 1), dtype=np.float32)


def counting() -> tuple[Counting, SentenceRanker]:
    scorer = Counting()
    words = Logistic(np.eye(len(NAMES))[0], 0.0, refuse_below=0.3)
    return scorer, SentenceRanker(scorer, Logistic(np.eye(1, 1 + len(NAMES))[0], 0.0, refuse_below=0.5), words)


def test_the_answer_is_probable_and_the_rest_is_not(ranker: SentenceRanker) -> None:
    scores = ranker.score("When was the lamp lit?", [*OTHERS, LAMP])
    assert scores.dtype == np.float32
    assert int(scores.argmax()) == 3
    assert scores[3] > ranker.refuse_below("When was the lamp lit?") > max(scores[:3])


def test_what_the_passages_do_not_say_is_refused(ranker: SentenceRanker) -> None:
    question = "How much does a ticket to the opera in Vienna cost?"
    assert ranker.score(question, [*OTHERS, LAMP]).max() < ranker.refuse_below(question)


def test_nothing_and_the_bare_are_scored(ranker: SentenceRanker) -> None:
    assert ranker.score("When?", []).shape == (0,)
    odd = ["", "…", "\u200b", "漢字", "a" * 9000, "[CLS] [SEP] [MASK]"]
    assert np.isfinite(ranker.score("?", odd)).all()


def test_of_many_passages_those_are_read_that_share_words() -> None:
    scorer, ranker = counting()
    passages = [f"Filler {n} " + "x" * 900 for n in range(40)] + ["The lamp burns."]
    scores = ranker.score("Where is the lamp?", passages)
    assert scorer.seen[-1] == "The lamp burns."
    assert sum(map(len, scorer.seen)) <= READ_CHARS
    assert (scores > 0.5).sum() == len(scorer.seen) < len(passages)


def test_the_best_of_few_sentences_may_be_less_probable() -> None:
    model = Logistic(np.zeros(1), 0.0, refuse_below=0.2, fall=0.5)
    assert model.bound(USUAL) == model.bound(9 * USUAL) == pytest.approx(0.2)
    few, one = model.bound(USUAL // 9), model.bound(1)
    assert few / (1 - few) == pytest.approx(0.25 / 3)  # the odds fall by the root of nine
    assert 0 < one < few < 0.2
    assert Logistic(np.zeros(1), 0.0).bound(1) == 0


def test_less_room_is_for_the_likeliest() -> None:
    scorer, ranker = counting()
    passages = ["A ship burns. The lamp burns.", "The sea. " + "x" * 200]
    sentences, around = ["A ship burns.", "The lamp burns.", "The sea."], [passages[0]] * 2 + [passages[1]]
    scores = ranker.score("Where does the lamp burn?", sentences, around, room=30)
    assert scorer.seen == sentences[:2]
    assert scores[2] < 1e-4 < scores[0]


def test_it_knows_what_all_is_in_a_language_that_is_read() -> None:
    _, ranker = counting()
    assert ranker.knows("Where is the lamp?", "It burns.")
    assert not ranker.knows("Where is the lamp?", "Die lampe brennt.")


def test_a_question_that_is_not_read_is_judged_by_words() -> None:
    scorer, ranker = counting()
    scores = ranker.score("Wo brennt die lampe?", ["Die lampe brennt auf der Mole.", "Bees."])
    assert scorer.seen == []
    assert scores[0] > scores[1]
    assert (ranker.refuse_below("Wo brennt die lampe?"), ranker.refuse_below("Where?")) == (0.3, 0.5)


@pytest.mark.parametrize(
    ("question", "right"),
    [
        ("Wann wurde die Lampe angezündet?", "Die Lampe wurde im Jahr 1871 angezündet."),
        ("¿Quién encendió la lámpara?", "La lámpara la encendió Ada Miller."),
        ("灯是谁点的？", "灯是看守的女儿点的。"),
    ],
)
def test_the_packaged_ranker_reads_english_and_finds_words_in_the_rest(
    ranker: SentenceRanker, question: str, right: str
) -> None:
    others = ["Die Mole ist aus Granit.", "El puerto es de granito.", "港口由花岗岩建成。"]
    scores = ranker.score(question, [*others, right])
    assert int(scores.argmax()) == 3
    assert scores[3] >= ranker.refuse_below(question)


def test_a_passage_is_as_good_as_its_best_sentence() -> None:
    _, ranker = counting()
    assert ranker.passages("lamp?", [["a", "b"], [], ["c"]], ["a b", "", "c"]).tolist() == pytest.approx(
        [1 / (1 + np.exp(-1)), 0, 1 / (1 + np.exp(-1))]
    )


def test_hits_are_put_in_order_and_keep_their_text(ranker: SentenceRanker) -> None:
    hits = [Hit(n, "d", "d.txt", 0, len(text), 1, 0.9 - n / 10, text) for n, text in enumerate([*OTHERS, LAMP])]
    found = reranked(ranker, "When was the lamp lit?", hits)
    assert found[0].text == LAMP
    assert sorted(hit.chunk_id for hit in found) == [0, 1, 2, 3]
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)


def test_any_encoder_ranks_by_its_cosines() -> None:
    ranker = load_ranker("cosine", SentenceEmbedder())
    scores = ranker.score("When was the lamp lit?", [*OTHERS, LAMP])
    assert int(scores.argmax()) == 3
    with pytest.raises(UnknownRanker, match="embedding model"):
        load_ranker("cosine")


def test_a_cross_encoder_by_folder(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    tokenizer = BertTokenizerFast(tokenizer_file=str(SentenceEmbedder().folder / "tokenizer.json"))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForSequenceClassification(BertConfig(num_labels=1, **sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ranker = load_ranker(str(tmp_path))
    scores = ranker.score("When?", OTHERS)
    assert ((scores > 0) & (scores < 1)).all()
    assert ranker.refuse_below("When?") == 0


@pytest.mark.parametrize("kind", ["BertModel", None])
def test_a_folder_that_is_no_cross_encoder_is_refused(tmp_path: Path, kind: str | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [kind] if kind else None}))
    with pytest.raises(UnknownRanker, match="no cross-encoder"):
        find_ranker(str(tmp_path))


def test_a_folder_that_is_not_there_is_refused() -> None:
    with pytest.raises(UnknownRanker, match="no folder /nowhere"):
        find_ranker("/nowhere")


def test_the_nearest_of_few_sentences_is_as_near_as_that_of_many() -> None:
    """What is calibrated on the sentences of eight passages has to hold for those of one paragraph."""
    rng = np.random.default_rng(0)
    few, many = (np.mean([_standard(rng.normal(size=count)).max() for _ in range(500)]) for count in (6, 45))
    assert few == pytest.approx(many, rel=0.15)
