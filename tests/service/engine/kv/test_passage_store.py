"""Passages that come back from host memory and from disk, as they were kept; and what is damaged, does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from service.engine.async_engine import AsyncEngine
from service.engine.engine import Engine
from service.engine.kv import PASSAGES
from service.engine.kv.passage_store import PassageFiles, PassageKV, PassageStore, passage_key
from service.errors import ModelError

from ..conftest import make_engine
from ..test_blending import SOME, ask, ids, prompt_of

BLEND = "blend:first=3"


def kept(tokens: int = 5, seed: int = 0, int8: bool = False) -> PassageKV:
    k, v = torch.randn(2, 3, tokens, 2, 8, generator=torch.Generator().manual_seed(seed))
    return PassageKV.of(k, v, 7, int8)


def warm(engine: Engine) -> list[Path]:
    with AsyncEngine(engine) as door:
        return door.warm_passages("book", [prompt_of(*some) for some in SOME])


def test_a_passage_comes_back_from_the_token_that_is_wanted() -> None:
    one = kept()
    assert one.num_tokens == 5
    k, v = one.part(range(2, 5), torch.device("cpu"))
    assert torch.equal(k, one.k[:, 2:])
    assert torch.equal(v, one.v[:, 2:])
    codes = kept(int8=True)
    near, _ = codes.part(range(2, 5), torch.device("cpu"))
    assert (near - k).abs().max() <= one.k.abs().max() / 254 + 1e-3
    assert codes.num_bytes < one.num_bytes / 3


@pytest.mark.parametrize("int8", [False, True])
def test_files_give_back_what_was_written(tmp_path: Path, int8: bool) -> None:
    every = {bytes([i]): kept(4 + i, i, int8) for i in range(3)}
    PassageFiles(tmp_path).write("book.0000", every)
    again = PassageFiles(tmp_path)
    assert len(again) == 3
    for key, one in every.items():
        other = again.load(key)
        assert other is not None
        assert (other.start, other.dtype) == (one.start, one.dtype)
        device = torch.device("cpu")
        parts = [kv.part(range(kv.num_tokens), device) for kv in (other, one)]
        assert all(torch.equal(a, b) for a, b in zip(*parts, strict=True))
        assert torch.equal(other.values(1), parts[1][1][1])
    assert again.load(b"other") is None


def test_a_file_that_is_written_anew_gives_back_nothing_of_what_it_held(tmp_path: Path) -> None:
    kept_files = PassageFiles(tmp_path)
    kept_files.write("book.0000", {b"old": kept(4, 0), b"both": kept(5, 1)})
    kept_files.write("book.0000", {b"both": kept(6, 2), b"new": kept(7, 3)})
    assert kept_files.load(b"old") is None
    again, new = kept_files.load(b"both"), kept_files.load(b"new")
    assert again is not None
    assert new is not None
    assert (again.num_tokens, new.num_tokens) == (6, 7)
    assert torch.equal(again.k, kept(6, 2).k)


def test_what_is_read_again_gives_way_last() -> None:
    store = PassageStore(2 * kept().num_bytes)
    for key in (b"a", b"b"):
        store.keep(key, kept())
    assert store.find(b"a", 5) is not None
    store.keep(b"c", kept())
    assert [store.find(key, 5) is not None for key in (b"a", b"b", b"c")] == [True, False, True]
    assert (store.queries, store.hits, store.evictions) == (20, 15, 1)
    assert len(store) == 2
    store.keep(b"d", kept(50))
    assert len(store) == 2  # larger than all of it


def test_another_text_preface_or_model_is_another_passage() -> None:
    keys = {
        passage_key(salt, preface, ids)
        for salt in ("m", "n")
        for preface, ids in (([], [1, 2, 3]), ([1], [2, 3]), ([1, 2], [3]), ([], [1, 2]), ([], [1, 3, 2]))
    }
    assert len(keys) == 10


def test_warmed_passages_serve_any_prompt_after_a_restart(tmp_path: Path) -> None:
    expected = ids(ask(make_engine(), SOME, BLEND))
    assert warm(make_engine(warm_folder=tmp_path))
    engine = make_engine(warm_folder=tmp_path)
    found = ask(engine, SOME, BLEND)
    assert ids(found) == expected
    assert all(one.stats["passage_hits"] == one.stats["passage_tokens"] for one in found)
    assert engine.stats()["passage_restored"] == 5
    assert ids(ask(make_engine(warm_folder=tmp_path, passage_memory=0), SOME, BLEND)) == expected


def test_those_of_another_model_or_precision_are_not_used(tmp_path: Path) -> None:
    warm(make_engine(warm_folder=tmp_path))
    for other in (
        make_engine("qwen2", warm_folder=tmp_path),
        make_engine(warm_folder=tmp_path, kv_dtype="int8"),
        make_engine(warm_folder=tmp_path, passage_dtype="int8"),
    ):
        assert ask(other, SOME[:1], BLEND)[0].stats["passage_hits"] == 0


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_damaged_files_are_read_anew(tmp_path: Path, damage: str) -> None:
    (path,) = warm(make_engine(warm_folder=tmp_path))
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes({"flip": content, "truncate": content[: len(content) // 2], "empty": b""}[damage])
    engine = make_engine(warm_folder=tmp_path)
    found = ask(engine, SOME, BLEND)
    assert ids(found) == ids(ask(make_engine(), SOME, BLEND))
    assert engine.stats()["passage_restored"] == 0
    engine.check_integrity()


def test_a_full_disk_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("service.engine.kv.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        PassageFiles(tmp_path).write("book.0000", {b"k": kept()})
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_taken_by_its_documents_passages_alone(tmp_path: Path) -> None:
    (path,) = warm(make_engine(warm_folder=tmp_path))
    assert path.name == f"book.0000{PASSAGES}"


def test_without_a_folder_nothing_is_warmed() -> None:
    with pytest.raises(ModelError, match="folder"):
        warm(make_engine())
