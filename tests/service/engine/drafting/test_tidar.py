"""A model trained to draft by diffusion: one forward verifies and fills the blocks, and the tokens are its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from drafters.errors import DrafterError
from drafters.machine_profile import MachineProfile
from drafters.training.tidar import DRAFTER, Recipe, agreement, made, save, train
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loading.checkpoint import load_model
from service.engine.params import SamplingParams

from ..conftest import generate, make_model

PERIOD = torch.randperm(64, generator=torch.Generator().manual_seed(3))[:23]
TEXT = PERIOD.repeat(60)
RECIPE = Recipe(steps=120, batch=4, sequence=48, block=3, learning_rate=3e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tidar")
    model = make_model(dtype=torch.float32)
    head = made(model, "tiny", RECIPE)
    before = agreement(model, head, TEXT, RECIPE)
    progress = list(train(model, head, TEXT, RECIPE))
    assert progress[-1] < progress[0] / 4
    after = agreement(model, head, TEXT, RECIPE)
    assert min(after) > 0.9 > max(before)
    save(model, head, path)
    return path


@pytest.mark.slow
def test_it_commits_more_tokens_a_step_and_the_same_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MachineProfile, "ready", False)  # else times decide how much is guessed
    config = EngineConfig(page_size=16, step_tokens=64, kv_memory=8 << 20, draft_model=str(folder / DRAFTER))
    engine = Engine(load_model(str(folder)), config)
    prompts = [TEXT[first : first + 30].tolist() for first in (0, 7)]

    def run(drafter: str, temperature: float) -> list[tuple[list[int], float]]:
        params = SamplingParams(max_tokens=24, temperature=temperature, drafter=drafter, ignore_eos=True, seed=2)
        found = generate(engine, prompts, params)
        return [(r.token_ids, r.stats["drafting"].get("accepted_length", 1.0)) for r in found]

    for temperature in (0.0, 1.0):
        plain, drafted = run("none", temperature), run("trained:paced=false", temperature)
        assert [ids for ids, _ in drafted] == [ids for ids, _ in plain]
        if temperature == 0:
            assert min(length for _, length in drafted) > 2.5
    engine.check_integrity()


def test_too_little_text_is_told() -> None:
    model = make_model(dtype=torch.float32)
    with pytest.raises(DrafterError, match="40 tokens of text are too few for sequences of 48"):
        next(train(model, made(model, "tiny", RECIPE), TEXT[:40], RECIPE))
