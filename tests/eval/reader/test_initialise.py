"""The initial weights carry out the algorithm that their module describes, before any training."""

from typing import Any

import numpy as np
import pytest
import torch

from eval.reader import initialise
from eval.reader.initialise import CODE, HEAD, at, build
from eval.reader.packing import Packer


def score(key: np.ndarray, query: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Rotary attention scores of a constant key and query at `distance`, as the model computes them."""
    k = key[: HEAD // 2] + 1j * key[HEAD // 2 :]
    q = query[: HEAD // 2] + 1j * query[HEAD // 2 :]
    turns = np.exp(1j * np.outer(distance, initialise.frequencies()))
    return (turns @ (q * k.conj())).real / np.sqrt(HEAD)


def test_one_back_wins_at_every_distance() -> None:
    scores = score(*initialise.back(1), np.arange(initialise.MAX_POSITIONS))
    assert scores.argmax() == 1
    others = np.delete(scores, 1)
    assert scores[1] - np.log(np.exp(others - others.max()).sum()) - others.max() > 8


def test_the_nearest_reference_wins_over_the_one_before_it() -> None:
    distance = np.arange(120)
    near = score(*initialise.nearest(), distance)
    assert (near - score(*initialise.nearest(), distance + 25) > 3).all()
    far = score(*initialise.nearest(), np.arange(2000, initialise.MAX_POSITIONS))
    assert near.min() - far.max() > 30


def test_the_same_seed_gives_the_same_weights(untrained: Any, reader_tokenizer: Any, sentences: list[str]) -> None:
    again = build(reader_tokenizer, sentences, seed=3).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in untrained.state_dict().items())


@torch.no_grad()
def test_every_token_knows_its_predecessor_and_its_reference(
    untrained: Any, packer: Packer, sentences: list[str]
) -> None:
    references = packer.references[5:9]
    ids = packer.context(sentences, references)
    states = untrained(torch.tensor([ids]), output_hidden_states=True).hidden_states
    codes, seen = states[0][0][:, :CODE], states[1][0]
    own = [max(i for i in range(at_ + 1) if i == 1 or ids[i] in references) for at_ in range(1, len(ids))]
    similar = torch.cosine_similarity
    assert similar(seen[2:, at("PREV") : at("PREV") + CODE], codes[1:-1]).min() > 0.99
    assert similar(seen[1:, at("REF") : at("REF") + CODE], codes[own]).min() > 0.9


@torch.no_grad()
@pytest.mark.parametrize("target", range(4))
def test_it_selects_by_shared_words_and_copies(
    untrained: Any, packer: Packer, sentences: list[str], target: int
) -> None:
    words = ["Lisbon earthquake", "engineer boiler", "silver horses", "emperor portraits"][target]
    references = packer.references[100:104]
    ids = [*packer.context(sentences, references), packer.question, *packer.encode(f"{words}?"), packer.answer]
    said = untrained.generate(torch.tensor([ids]), max_new_tokens=60, do_sample=False)[0, len(ids) :].tolist()
    assert said == [references[target], *packer.encode(sentences[target]), packer.end]
