"""Weights that are not the ones their manifest names are not used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from service.errors import ModelError
from service.reader import MODEL_DIR, verify_model


@pytest.fixture
def reader(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODEL_DIR, tmp_path / "reader"))


def test_an_altered_reader(reader: Path) -> None:
    assert verify_model(reader)
    weights = reader / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError, match=r"model\.safetensors is not the file its manifest names"):
        verify_model(reader)


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json"])
def test_a_reader_that_lacks_a_file(reader: Path, name: str) -> None:
    (reader / name).unlink()
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        verify_model(reader)
