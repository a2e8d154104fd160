"""Distillation makes a draft model agree with its target."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from drafters.errors import DrafterError
from drafters.training.distill import DIVERGENCES, Recipe, agreement, main, smaller, train
from drafters.training.fastdraft import pretrain, small


@pytest.fixture(scope="module")
def target(random_llama):
    return random_llama(
        vocab_size=40,
        intermediate_size=48,
        num_hidden_layers=3,
        max_position_embeddings=64,
        pad_token_id=0,
        initializer_range=0.3,
    )


TEXT = torch.randint(1, 40, (500,), generator=torch.Generator().manual_seed(1))
RECIPE = Recipe(steps=60, batch=8, sequence=16, learning_rate=3e-3)


def test_agreement_of_a_model_with_itself_is_whole(target):
    assert agreement(target, target, TEXT, RECIPE, 1) == {"sampled": pytest.approx(1.0), "greedy": 1.0}


def test_training_raises_agreement_and_leaves_the_target_alone(target):
    before = {name: weight.clone() for name, weight in target.state_dict().items()}
    draft = smaller(target, 1)
    start = agreement(target, draft, TEXT, RECIPE)
    losses = list(train(target, draft, TEXT, RECIPE))
    end = agreement(target, draft, TEXT, RECIPE)
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert end["sampled"] > start["sampled"] + 0.05
    assert all(torch.equal(before[name], weight) for name, weight in target.state_dict().items())


@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence_is_one_and_is_lowered(target, name):
    p, q = (torch.randn(5, 40, generator=torch.Generator().manual_seed(i)).log_softmax(-1) for i in range(2))
    assert (DIVERGENCES[name](p, q) > 0.05).all()
    assert DIVERGENCES[name](p, p).abs().max() < 1e-6
    recipe = replace(RECIPE, divergence=name, steps=30, on_policy=0.5, learning_rate=1e-2)
    draft = smaller(target, 1)
    start = agreement(target, draft, TEXT, recipe, 2)
    list(train(target, draft, TEXT, recipe))
    assert agreement(target, draft, TEXT, recipe, 2)["sampled"] > start["sampled"]


def test_the_divergences_are_those_of_the_definitions():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    found = {name: float(measure(p.log(), q.log())) for name, measure in DIVERGENCES.items()}
    middle = (p + q) / 2
    assert found["forward_kl"] == pytest.approx(float((p * (p / q).log()).sum()))
    assert found["reverse_kl"] == pytest.approx(float((q * (q / p).log()).sum()))
    halves = (p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()
    assert found["jensen_shannon"] == pytest.approx(float(halves / 2))
    assert found["total_variation"] == pytest.approx(0.4)


def test_an_unknown_divergence_is_refused(target):
    with pytest.raises(DrafterError, match="no divergence 'euclid'; there are forward_kl"):
        next(train(target, smaller(target, 1), TEXT, replace(RECIPE, divergence="euclid")))


def test_a_small_model_from_nothing_learns_text_and_then_the_target(target):
    """FastDraft: pre-training alone makes its text likely, and alignment goes on from there."""
    draft = small(target, 1, 16)
    assert draft.config.hidden_size == 16 < target.config.hidden_size
    assert sum(w.numel() for w in draft.parameters()) < 0.5 * sum(w.numel() for w in target.parameters())
    text = torch.tensor([3, 7, 1, 4] * 60)
    losses = list(pretrain(draft, text, 50, replace(RECIPE, learning_rate=3e-2)))
    assert losses[-1] < 0.2 * losses[0]
    start = agreement(target, draft, TEXT, RECIPE, 2)
    list(train(target, draft, TEXT, replace(RECIPE, steps=20, learning_rate=1e-2)))
    assert agreement(target, draft, TEXT, RECIPE, 2)["sampled"] > start["sampled"]
    with pytest.raises(DrafterError, match="a multiple of 16 below 32, not 24"):
        small(target, 1, 24)


def test_the_smaller_model_starts_from_the_target(target):
    draft = smaller(target, 2)
    assert torch.equal(draft.model.embed_tokens.weight, target.model.embed_tokens.weight)
    assert len(draft.model.layers) == 2
    with pytest.raises(DrafterError, match="1 to 2 layers"):
        smaller(target, 3)


def test_short_text_and_other_vocabularies_are_refused(target, random_llama):
    with pytest.raises(DrafterError, match="too few"):
        agreement(target, target, TEXT[:10], RECIPE)
    with pytest.raises(DrafterError, match="39 token ids, the target 40"):
        next(
            train(
                target,
                random_llama(vocab_size=39, intermediate_size=48, num_hidden_layers=1, pad_token_id=0),
                TEXT,
                RECIPE,
            )
        )


@pytest.mark.slow
def test_one_command(tmp_path, capsys):
    """From the embedded reader to a draft model that loads."""
    from service.reader import MODEL_DIR

    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and the dog does not mind. " * 60)
    out = tmp_path / "draft"
    main([str(MODEL_DIR), str(text), "--output", str(out), "--steps", "3", "--batch", "2", "--sequence", "32"])
    figures = json.loads((out / "distillation.json").read_text())
    assert figures["recipe"]["steps"] == 3
    assert 0 <= figures["agreement_after"]["greedy"] <= 1
    assert (out / "model.safetensors").is_file()
    assert "agreement_after" in capsys.readouterr().out
