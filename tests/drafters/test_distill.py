"""Distillation makes a draft model agree with its target."""

from __future__ import annotations

import json

import pytest
import torch

from drafters.errors import DrafterError
from drafters.training.distill import Recipe, agreement, main, smaller, train


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
