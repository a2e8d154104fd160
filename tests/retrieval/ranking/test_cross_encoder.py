"""Every sentence of a passage is scored in one pass, as if its passage were alone."""

import pytest
import torch

from retrieval.embedding.embedder import SentenceEmbedder
from retrieval.ranking.cross_encoder import (
    SENTENCE_TOKENS,
    WINDOW_TOKENS,
    CrossEncoder,
    low_rank_changes,
    windows,
)
from retrieval.ranking.ranker import MODEL_DIR

PASSAGES = [
    "The lamp was lit in 1871. It burns on the northern mole.",
    "Nobody remembers who built the moles. They are of granite, which came from the islands by ship.",
]


@pytest.fixture(scope="module")
def encoder() -> CrossEncoder:
    return CrossEncoder(SentenceEmbedder().folder, MODEL_DIR, bfloat16=False)


def read(encoder: CrossEncoder, *passages: list[str], question: str = "When was the lamp lit?") -> list[float]:
    pieces, number = [], 0
    found = []
    for sentences in passages:
        pieces = [(tokens, number + n) for n, tokens in enumerate(encoder.tokens(sentences))]
        number += len(sentences)
        found += windows(pieces)
    scores = encoder.scores(question, found)
    return [scores[n] for n in range(number)]


ONE, TWO = (passage.replace(". ", ".\n").split("\n") for passage in PASSAGES)


def test_scores_do_not_depend_on_what_is_read_beside(encoder: CrossEncoder) -> None:
    together = read(encoder, ONE, TWO)
    assert together[:2] == pytest.approx(read(encoder, ONE), abs=1e-3)
    assert together[2:] == pytest.approx(read(encoder, TWO), abs=1e-3)
    assert max(range(4), key=together.__getitem__) == 0


def test_what_was_read_for_a_question_is_not_read_again(encoder: CrossEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    question = "Which islands is it from?"
    whole = read(encoder, ONE, TWO, question=question)
    passes = []
    states = encoder._bert.states
    monkeypatch.setattr(encoder._bert, "states", lambda *given: passes.append(len(given[0])) or states(*given))
    assert read(encoder, ["A lamp."], TWO, question=question)[1:] == whole[2:]
    assert passes == [1]  # the new passage alone
    monkeypatch.setattr("retrieval.ranking.cross_encoder.KEPT", 1)
    read(encoder, ONE, TWO, question="Which ship?")
    assert len(encoder._kept) == 1


def test_a_sentence_is_read_in_its_passage(encoder: CrossEncoder) -> None:
    question = "Where does the lamp burn?"
    inside = read(encoder, ONE, question=question)[1]
    assert inside > read(encoder, [ONE[1]], question=question)[0]


def test_long_passages_are_cut_and_every_sentence_is_scored(encoder: CrossEncoder) -> None:
    many = [f"Ship number {n} carried granite from the islands to the harbour." for n in range(60)]
    pieces = [(tokens, n) for n, tokens in enumerate(encoder.tokens([*many, "endless " * 400]))]
    cut = windows(pieces)
    assert len(cut) > 2
    assert all(window.size <= WINDOW_TOKENS for window in cut)
    assert [n for window in cut for n in window.sentences if n is not None] == list(range(61))
    assert max(len(tokens) for window in cut for tokens in window.tokens) == SENTENCE_TOKENS
    assert len(encoder.scores("Which ship?", cut)) == 61


def test_a_change_is_the_product_of_its_halves_or_itself() -> None:
    up, down, bias = torch.ones(3, 1), torch.arange(2.0)[None], torch.ones(3)
    changes = low_rank_changes({"a.weight.up": up, "a.weight.down": down, "a.bias": bias})
    assert changes.keys() == {"a.weight", "a.bias"}
    assert changes["a.weight"].tolist() == [[0, 1]] * 3
