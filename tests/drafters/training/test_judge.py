"""Judge Decoding: trained on answers whose wrong parts are marked, it lets pass what is right and differs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from drafters.base import RequestState
from drafters.errors import DrafterError
from drafters.heads.folder import load_head, save_head
from drafters.models.judge import Judge, load_judge
from drafters.options import TrainedOptions
from drafters.registry import build
from drafters.sampling.choice import Sampling
from drafters.training.judge import train_judge
from drafters.tree import DraftTree
from drafters.verify import verify

WORDS = ["one", "two", "three", "four", "five", "six", "bad", "worse"]


@pytest.fixture
def teacher(lab):
    class Teacher(lab.Target):
        """A word is a token; the state after it is its output row."""

        def encode(self, text):
            return [WORDS.index(word) for word in text.split()]

        def decode(self, ids):
            return "".join(f" {WORDS[i]}" for i in ids)[1:]

        ask = encode

        def states(self, token_ids, layers):
            return self._out[torch.tensor(token_ids)][:, None].repeat(1, len(layers), 1), torch.tensor(token_ids)

    return Teacher(12)


@pytest.fixture
def data(tmp_path):
    random = np.random.default_rng(0)
    rows = []
    for i in range(40):
        words = [WORDS[k] for k in random.integers(0, 6, 8)]
        words[i % 7] = "bad worse"
        rows.append({"prompt": "one", "answer": " ".join(words), "wrong": ["bad worse"]})
    file = tmp_path / "marked.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_it_tells_right_from_wrong(lab, teacher, data, tmp_path):
    save_head(lab.head("eagle3"), tmp_path / "head")
    figures = train_judge(teacher, [data], tmp_path / "head", print)
    assert figures["right_accepted"] > 0.95
    assert figures["wrong_accepted"] < 0.05
    assert (figures["answers"], figures["tokens"], figures["wrong"]) == (40, 360, 80)
    judge = load_judge(tmp_path / "head", teacher)
    states, _ = teacher.states([0, 3, 6, 7], (-1,))
    assert (judge.right(states[:, 0]) > 0.5).tolist() == [True, True, False, False]
    with pytest.raises(DrafterError, match="made for tiny, whose weights are others"):
        load_judge(tmp_path / "head", lab.Target(12, seed=5))
    assert load_judge(tmp_path, teacher) is None
    assert load_head(tmp_path / "head", teacher).name == "eagle3"  # whose weights are not the judge's
    (tmp_path / "head" / "judge.safetensors").write_bytes(b"damaged")
    with pytest.raises(DrafterError, match="is damaged"):
        load_judge(tmp_path / "head", teacher)


def test_bad_data_are_told(lab, teacher, data, tmp_path):
    with pytest.raises(DrafterError, match="train one first"):
        train_judge(teacher, [data], tmp_path, print)
    save_head(lab.head("eagle3"), tmp_path)
    for text, said in (
        ('{"prompt": "one"}', "line 1 of .*: 'answer'"),
        ('{"prompt": "one", "answer": "two", "wrong": ["six"]}', "'six' is marked wrong and does not stand"),
        ('{"prompt": "one", "answer": "two"}', "1 answers are too few"),
        ("\n".join(['{"prompt": "one", "answer": "two"}'] * 20), "no token is wrong in some part"),
    ):
        data.write_text(text)
        with pytest.raises(DrafterError, match=said):
            train_judge(teacher, [data], tmp_path, print)
    with pytest.raises(DrafterError, match="cannot be read"):
        train_judge(teacher, [tmp_path / "absent"], tmp_path, print)


def test_what_it_finds_right_is_kept(lab):
    """A guess that is not the choice passes where the judge says so, and nothing below one that does not."""
    resources = lab.resources(lab.Model(vocab_size=4))
    resources.judge = Judge(torch.tensor([1.0] + [0.0] * 15), torch.zeros(1))
    drafter = build(TrainedOptions(judge=0.9), resources)
    assert drafter.lossy
    assert drafter.layers[-1] == -1
    tree = DraftTree.of([1, 2, 3, 1], [-1, 0, 1, -1])
    logits = torch.zeros(5, 4, dtype=torch.float64)
    logits[:, 0] = 5.0  # of which the target chooses none that was guessed
    states = torch.zeros(5, 2, 16)
    states[1:, -1, 0] = torch.tensor([4.0, 4.0, -4.0, 2.0])
    state = RequestState("r", [1, 2, 3], 3, Sampling())
    keyed = verify(tree, logits.argmax(-1).tolist())
    assert keyed.path == ()
    found = drafter.verify(state, tree, logits, keyed, states)
    assert found.path == (0, 1)
    assert found.tokens == (1, 2, 0)
    states[1, -1, 0] = -4.0
    assert drafter.verify(state, tree, logits, keyed, states).path == ()
    with pytest.raises(DrafterError, match="needs a judge"):
        build(TrainedOptions(judge=0.9), lab.resources(lab.Model(vocab_size=4)))
    with pytest.raises(DrafterError, match="give one"):
        TrainedOptions(judge=0.5, typical=0.3)
