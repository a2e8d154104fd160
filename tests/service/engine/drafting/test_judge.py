"""Judge Decoding at work: more is accepted than the target would choose, and the answer is called lossy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from drafters.heads.folder import HEADS, save_head
from drafters.training.judge import train_judge
from service.engine.async_engine import AsyncEngine
from service.engine.config import EngineConfig
from service.engine.drafting.target import TargetView
from service.engine.drafting.teacher import EngineTeacher
from service.engine.engine import Engine
from service.engine.loading.checkpoint import LoadedModel, load_model
from service.engine.params import SamplingParams
from service.errors import InvalidRequest

from ..conftest import generate

ANSWER = "The ferry leaves the northern harbour at noon and reaches the island in two hours."
WRONG = "xq zv 9 & the the"


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("embedded")


@pytest.fixture(scope="module")
def folder(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drafter of random weights, and a judge that learned from the reader's own states."""
    path = tmp_path_factory.mktemp("judged")
    target = TargetView(loaded)
    torch.manual_seed(0)
    head = HEADS["medusa"](HEADS["medusa"].configure(target), target)
    head.share(target)
    save_head(head, path)
    words = ANSWER.split()
    rows = []
    for i in range(30):
        marked = " ".join([*words[: 2 + i % 9], WRONG, *words[2 + i % 9 :]])
        rows.append({"prompt": f"When does ferry {i} leave?", "answer": marked, "wrong": [WRONG]})
    (path / "marked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with AsyncEngine(Engine(loaded, EngineConfig(kv_memory=64 << 20, drafter="none"))) as door:
        figures = train_judge(EngineTeacher(door), [path / "marked.jsonl"], path, lambda line: None)
    assert figures["right_accepted"] > 0.8 > 0.5 > figures["wrong_accepted"]
    return path


def answers(loaded: LoadedModel, folder: Path, drafter: str) -> list[Any]:
    engine = Engine(loaded, EngineConfig(kv_memory=64 << 20, draft_model=str(folder)))
    prompts = [loaded.tokenizer.encode(text) for text in ("When does the ferry leave?", "Tell me about the harbour.")]
    found = generate(engine, prompts, SamplingParams(max_tokens=24, drafter=drafter, ignore_eos=True))
    engine.check_integrity()
    return found


def test_more_is_accepted_and_the_answer_is_called_lossy(loaded: LoadedModel, folder: Path) -> None:
    plain = answers(loaded, folder, "none")
    exact = answers(loaded, folder, "trained:paced=false,min_score=0")
    judged = answers(loaded, folder, "trained:judge=0.5,min_score=0")
    assert [r.token_ids for r in exact] == [r.token_ids for r in plain]
    assert [r.stats["lossy"] for r in exact + judged] == [False, False, True, True]
    length = [[r.stats["drafting"]["accepted_length"] for r in found] for found in (exact, judged)]
    assert min(length[1]) > max(length[0]) + 0.5
    assert not any(r.stats["drafting"]["failures"] for r in exact + judged)


def test_a_judge_that_nothing_satisfies_changes_nothing(loaded: LoadedModel, folder: Path) -> None:
    plain, strict = (answers(loaded, folder, name) for name in ("none", "trained:judge=1,min_score=0"))
    assert [r.token_ids for r in strict] == [r.token_ids for r in plain]
    assert all(r.stats["lossy"] for r in strict)  # by what was asked for, not by what came of it


def test_without_a_judge_it_is_refused(loaded: LoadedModel, folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(InvalidRequest, match="needs a judge beside the trained drafter"):
        answers(loaded, tmp_path, "trained:judge=0.5")
