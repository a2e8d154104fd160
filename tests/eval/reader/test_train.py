"""Batches are laid out right, and a run that was interrupted ends with the same weights."""

import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.reader.data import NOWHERE, Example, Question
from eval.reader.packing import Packer
from eval.reader.train import Recipe, Trainer, export, loss_of, rate_at
from service.reader import verify_model

TEXTS = [
    [f"The {a} of {b} was seen near {c} in the year {n}." for n, c in enumerate(("York", "Leeds", "Bath"), 1900)]
    for a, b in (("captain", "Dover"), ("baker", "Calais"), ("doctor", "Ostend"), ("singer", "Bremen"))
]
RECIPE = Recipe(steps=4, warmup=1, stages=(40,))
EXAMPLE = Example(TEXTS[0], [Question("captain near Leeds?", 1, "keywords"), Question("Who?", NOWHERE, "not stated")])


def trainer(model: Any, tokenizer: Any) -> Trainer:
    return Trainer(deepcopy(model), tokenizer, TEXTS, RECIPE)


def test_branches_see_the_context_and_themselves_only(packer: Packer) -> None:
    batch = packer.pack(EXAMPLE, random.Random(0))
    seen = batch.mask()[0, 0]
    for row in range(len(batch.ids)):
        allowed = [i for i in range(row + 1) if batch.branch[i] in (0, int(batch.branch[row]))]
        assert seen[row].nonzero().flatten().tolist() == allowed
    first = (batch.branch == 1).nonzero().flatten()
    second = (batch.branch == 2).nonzero().flatten()
    assert batch.positions[first[0]] == batch.positions[second[0]] == batch.positions[batch.branch == 0][-1] + 1


def test_targets_are_the_answer(packer: Packer) -> None:
    batch = packer.pack(EXAMPLE, random.Random(1))
    starts = batch.is_reference.nonzero().flatten().tolist()
    assert [int(batch.targets[i]) == packer.none for i in starts] == [False, True]
    assert all(int(batch.ids[batch.rows[i]]) == packer.answer for i in starts)
    for row, target, lead in zip(batch.rows, batch.targets, batch.is_reference, strict=True):
        if not lead:
            continue
        place = batch.ids.tolist().index(int(target))
        assert batch.branch[place] == 0
        assert place < row


def test_the_loss_is_that_of_the_whole_model(reader_model: Any, packer: Packer) -> None:
    batch = packer.pack(EXAMPLE, random.Random(2))
    mask = torch.zeros(batch.mask().shape).masked_fill_(~batch.mask(), float("-inf"))
    with torch.no_grad():
        loss, _, _ = loss_of(reader_model, batch)
        inputs = {"input_ids": batch.ids[None], "position_ids": batch.positions[None], "attention_mask": mask}
        logits = reader_model(**inputs).logits[0, batch.rows]
    whole = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    expected = whole[batch.is_reference].mean() + whole[~batch.is_reference].mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights(untrained: Any, reader_tokenizer: Any, tmp_path: Path) -> None:
    whole = trainer(untrained, reader_tokenizer)
    for _ in range(4):
        whole.step()
    part = trainer(untrained, reader_tokenizer)
    for _ in range(2):
        part.step()
    part.save(tmp_path)
    resumed = trainer(untrained, reader_tokenizer)
    resumed.load(tmp_path)
    for _ in range(2):
        resumed.step()
    assert resumed.progress == whole.progress
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())
    changed = untrained.state_dict()
    assert any(not torch.equal(tensor, expected[name]) for name, tensor in changed.items())


def test_an_exported_model_is_verified_and_a_changed_one_refused(
    reader_model: Any, reader_tokenizer: Any, tmp_path: Path
) -> None:
    export(reader_model, reader_tokenizer, tmp_path)
    assert "model.safetensors" in verify_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Exception, match=r"config\.json"):
        verify_model(tmp_path)


def test_the_rate_warms_up_and_falls() -> None:
    recipe = Recipe(rate=1.0, warmup=10, steps=100)
    rates = [rate_at(step, recipe) for step in range(100)]
    assert rates.index(max(rates)) == 9
    assert rates[0] < rates[5] < rates[9] > rates[50] > rates[99] > 0.09
