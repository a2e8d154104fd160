"""GGUF files that are damaged, foreign or in parts."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.engine.loading.checkpoint import load_model, load_tokenizer, read_config
from service.engine.loading.gguf_file import open_gguf
from service.errors import ModelError

Write = Callable[..., Path]


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as refused:
        load_model(str(path))
    assert "\n" not in refused.value.detail
    return refused.value.detail


def test_what_a_file_holds(gguf_file: Write) -> None:
    file = open_gguf(gguf_file())
    assert (file.architecture, file.own("block_count"), file.metadata["tokenizer.ggml.eos_token_id"]) == ("llama", 3, 2)
    assert len(file.tensors) == 30
    tensor = file.tensors["blk.0.ffn_down.weight"]
    assert (tensor.shape, tensor.kind, tensor.data.shape) == ((48, 64), "F32", (48, 256))
    assert file.num_parameters == sum(np.prod(tensor.shape) for tensor in file.tensors.values())


@pytest.mark.parametrize("part", [0.001, 0.01, 0.03, 0.5, 0.999])
def test_cut_off(gguf_file: Write, part: float) -> None:
    path = gguf_file()
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    assert "llama.gguf is cut off" in refusal(path)


def test_empty_and_foreign(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"")
    assert "a.gguf is no GGUF file" in refusal(path)
    path.write_bytes(b"PK\3\4" + bytes(100))
    assert "a.gguf is no GGUF file" in refusal(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    assert "Git LFS pointer" in refusal(path)
    assert "There is no file" in refusal(tmp_path / "b.gguf")


@pytest.mark.parametrize(
    ("version", "said"), [(b"\1\0\0\0", "GGUF version 1"), (b"\4\0\0\0", "GGUF version 4"), (b"\0\0\0\3", "big-endian")]
)
def test_versions(gguf_file: Write, version: bytes, said: str) -> None:
    path = gguf_file()
    data = path.read_bytes()
    path.write_bytes(data[:4] + version + data[8:])
    assert said in refusal(path)


def test_a_tensor_kind_that_is_not_known(gguf_file: Write) -> None:
    path = gguf_file()
    data = bytearray(path.read_bytes())
    name = b"token_embd.weight"
    place = data.index(name) + len(name) + 4 + 2 * 8
    data[place : place + 4] = struct.pack("<I", 250)
    path.write_bytes(bytes(data))
    assert "stores token_embd.weight in the tensor kind 250" in refusal(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1), byte=st.integers(0, 255))
def test_a_damaged_head_is_refused_or_read(gguf_file: Write, place: float, byte: int) -> None:
    path = gguf_file("flipped.gguf")
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 4 * open_gguf(path).num_parameters - 1))] = byte
    path.write_bytes(bytes(data))
    with suppress(ModelError):  # any other error fails
        read_config(str(path))
        load_tokenizer(str(path))


def test_a_count_beyond_the_file_takes_no_time(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    key = b"tokenizer.ggml.tokens"
    pair = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, 8, 1 << 60)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair)
    assert "cut off" in refusal(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0))
    assert "cut off" in refusal(path)


def split(path: Path, count: int) -> list[Path]:
    """Parts as llama-gguf-split names them: the metadata in the first, the tensors dealt out."""
    import gguf

    reader = gguf.GGUFReader(path)
    parts = [path.with_name(f"{path.stem}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)]
    for number, part in enumerate(parts):
        writer = gguf.GGUFWriter(str(part), "llama")
        for field in reader.fields.values() if number == 0 else ():
            if field.name not in ("general.architecture",) and not field.name.startswith("GGUF."):
                kind = field.types[0]
                writer.add_key_value(field.name, field.contents(), kind, field.types[-1] if kind == 9 else None)
        writer.add_uint16("split.count", count)
        for tensor in reader.tensors[number::count]:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    path.unlink()
    return parts


def test_parts_are_one_model(gguf_file: Write) -> None:
    path = gguf_file()
    whole = load_model(str(path)).model.state_dict()
    parts = split(path, 3)
    for name in (*parts, parts[0].parent):
        got = load_model(str(name)).model.state_dict()
        assert got.keys() == whole.keys()
        assert all(bool((got[key] == whole[key]).all()) for key in whole)
    parts[1].unlink()
    assert f"There is no file {parts[1].name}" in refusal(parts[0])


@pytest.mark.parametrize("name", ["a-00001-of-00000.gguf", "a-00003-of-00002.gguf"])
def test_a_name_that_counts_no_parts_is_a_name(gguf_file: Write, name: str) -> None:
    assert open_gguf(gguf_file(name)).num_parameters > 0


def test_a_folder_with_two(gguf_file: Write) -> None:
    one = gguf_file("one.gguf")
    assert load_model(str(one.parent)).max_len == 512
    gguf_file("two.gguf")
    assert "holds 2 GGUF models: one.gguf, two.gguf" in (said := refusal(one.parent))
    assert "Name one" in said


def test_the_fingerprint_is_the_files_hash(gguf_file: Write) -> None:
    import hashlib

    path = gguf_file()
    assert load_model(str(path)).fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
