"""`folio train`: from texts to a folder that an engine takes, in one command that can be given again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.cli.main import main
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.errors import Exit

SENTENCE = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. "


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(SENTENCE * 120)
    return tmp_path / "text.txt"


@pytest.mark.slow
def test_one_command(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "drafter"
    command = ["--home", str(tmp_path / "home"), "train", "medusa", "--target", "embedded", "--data", str(texts)]
    command += ["--output", str(out), "--tokens", "1500", "--answers", "0.3", "--steps", "6", "--batch", "2", "--json"]
    assert main(command) == Exit.OK
    first = json.loads(capsys.readouterr().out)
    assert first["steps"] == 6
    assert 1000 < first["tokens"] < 2000
    assert main([*command[:-1], "--steps", "8", "--option", "depth=4"]) == Exit.OK  # two steps more
    assert json.loads((out / "training.json").read_text())["steps"] == 8
    engine = Engine.from_pretrained("embedded", EngineConfig(kv_memory=64 << 20, draft_model=str(out)))
    head = engine.drafting.resources.head
    assert head is not None
    assert (head.name, head.config.depth) == ("medusa", 4)


def test_what_is_missing_is_told_at_once(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--home", str(tmp_path), "train", "medusa", "--target", "embedded", "--data", str(texts)]
    assert main(base) == Exit.USAGE
    assert "--minutes or --steps" in capsys.readouterr().err
    assert main([*base, "--steps", "2", "--option", "depth"]) == Exit.USAGE
    assert "KEY=NUMBER" in capsys.readouterr().err
