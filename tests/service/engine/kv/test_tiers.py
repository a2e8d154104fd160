"""Pages that come back: from host memory after eviction, from disk after a restart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from service.engine.async_engine import AsyncEngine
from service.engine.engine import Engine
from service.engine.params import SamplingParams
from service.errors import InvalidRequest, ModelError

from ..conftest import generate, make_engine

DOCUMENT = [3 + (i * i) % 90 for i in range(100)]
PARAMS = SamplingParams(max_tokens=8, ignore_eos=True)


def warm(engine: Engine, token_ids: Sequence[int], attention: str | None = None) -> Path:
    with AsyncEngine(engine) as door:
        return door.warm("book", token_ids, attention)


def expected(question: int) -> list[int]:
    return generate(make_engine(), [[*DOCUMENT, question]], PARAMS)[0].token_ids


def test_an_evicted_prefix_comes_back_from_host_memory() -> None:
    engine = make_engine(pages=10, host_memory=1 << 20)
    generate(engine, [[*DOCUMENT, 5]], PARAMS)
    generate(engine, [[90 - t % 80 for t in DOCUMENT]], PARAMS)  # evicts it
    assert engine.blocks.evictions > 0
    result = generate(engine, [[*DOCUMENT, 6]], PARAMS)[0]
    assert result.stats["cached_tokens"] == 96
    assert engine.blocks.restored > 0
    assert result.token_ids == expected(6)
    engine.check_integrity()


def test_host_memory_is_bounded() -> None:
    engine = make_engine(pages=10, host_memory=40_000)
    for shift in range(5):
        generate(engine, [[(t + shift) % 90 + 3 for t in DOCUMENT]], PARAMS)
    page_bytes = engine.loaded.kv_shape.bytes_per_token(engine.runner.pool.dtype) * 16
    (host,) = engine.blocks.lower._tiers  # type: ignore[union-attr]
    assert 0 < len(host) * page_bytes <= 40_000


def test_a_warmed_document_starts_at_once_after_a_restart(tmp_path: Path) -> None:
    warm(make_engine(warm_folder=tmp_path), DOCUMENT, "dense")
    engine = make_engine(warm_folder=tmp_path)
    result = generate(engine, [[*DOCUMENT, 7]], SamplingParams(max_tokens=8, ignore_eos=True, attention="dense"))[0]
    assert result.stats["cached_tokens"] == 96
    assert result.token_ids == expected(7)


def test_warmed_pages_of_another_model_are_not_used(tmp_path: Path) -> None:
    warm(make_engine("llama", warm_folder=tmp_path), DOCUMENT)
    assert generate(make_engine("qwen2", warm_folder=tmp_path), [DOCUMENT], PARAMS)[0].stats["cached_tokens"] == 0


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_damaged_warmed_pages_are_computed_anew(tmp_path: Path, damage: str) -> None:
    path = warm(make_engine(warm_folder=tmp_path), DOCUMENT)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    engine = make_engine(warm_folder=tmp_path)
    result = generate(engine, [[*DOCUMENT, 7]], PARAMS)[0]
    assert result.stats["cached_tokens"] == 0
    assert result.token_ids == expected(7)
    engine.check_integrity()


def test_nothing_to_warm_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="folder"):
        warm(make_engine(), DOCUMENT)
    with pytest.raises(InvalidRequest, match="page"):
        warm(make_engine(warm_folder=tmp_path), DOCUMENT[:10])
