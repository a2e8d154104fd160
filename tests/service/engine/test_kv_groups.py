"""Head groups and int8 pages in the engine: less memory, and nothing else changes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from service.engine.admission import Admission
from service.engine.async_engine import AsyncEngine
from service.engine.block_manager import GONE
from service.engine.engine import Engine
from service.engine.params import SamplingParams
from service.errors import InvalidRequest, PromptTooLong
from sparse_attn.kv.lifetimes import PageLifetimes
from sparse_attn.plan.formats import write_duo

from .conftest import generate, make_engine

STREAMING = "streaming:sink=16,local=32,gate=0,block=16"


@pytest.fixture
def lserve(tmp_path: Path) -> str:
    """LServe over a table of heads whose streaming half differs from layer to layer, one layer having none."""
    write_duo(tmp_path / "heads.tsv", [[0.1, 0.9], [0.2, 0.3], [0.8, 0.7]])
    return (
        f"lserve:heads={tmp_path / 'heads.tsv'},budget=96,sink=16,recent=16,local=16,prefill_local=32,block=16,"
        "interval=4"
    )


def prompts() -> list[list[int]]:
    rng = random.Random(11)
    return [[rng.randrange(3, 97) for _ in range(n)] for n in (210, 150, 90)]


def run(engine: Engine, attention: str, **changes: Any) -> list[list[int]]:
    params = {"max_tokens": 12, "attention": attention, "drafter": "none", "ignore_eos": True, **changes}
    results = generate(engine, prompts(), SamplingParams(**params))
    engine.check_integrity()
    assert engine.blocks.num_owned == 0
    return [r.token_ids for r in results]


def most_bytes(engine: Engine, attention: str, prompt: list[int]) -> int:
    """The most bytes of KV that one request holds between steps, by the engine's own account."""
    request_id = engine.add_request(
        prompt, SamplingParams(max_tokens=20, attention=attention, drafter="none", ignore_eos=True)
    )
    most = 0
    while request_id in engine._requests:
        engine.step()
        most = max(most, engine.stats()["kv_bytes_used"])
    return most


def test_freed_pages_change_nothing(lserve: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ring against the same policy with every page kept, for some heads and for all."""
    found = {name: run(make_engine(attention=lserve), name) for name in (lserve, STREAMING)}
    assert make_engine(attention=lserve).blocks.num_groups == 2
    monkeypatch.setattr(PageLifetimes, "of", lambda *_: None)
    for name, ids in found.items():
        assert run(make_engine(kv_groups="none"), name) == ids


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_every_policy_runs_over_pages_in_groups(lserve: str, kv_dtype: str) -> None:
    """Policies that read keys and bounds of all heads find them in both groups."""
    for attention in (
        "dense",
        "quest:budget=96,sink=16,recent=16,dense_layers=0,interval=4",
        "xattention:gate=0,p=0.5,block=16,stride=4,sink=16,local=16",
        "flexprefill:gate=0,minimum=16,gamma=0.2,block=16",
    ):
        apart = make_engine(kv_groups=lserve, kv_dtype=kv_dtype)
        assert run(apart, attention) == run(make_engine(kv_dtype=kv_dtype), attention)


@pytest.mark.parametrize(
    ("policy", "kv_dtype"), [("dense", "int8"), ("lserve", "auto"), ("lserve", "int8"), ("streaming", "auto")]
)
def test_trees_preemption_and_the_prefix_cache_change_nothing(lserve: str, policy: str, kv_dtype: str) -> None:
    name = {"dense": "dense", "lserve": lserve, "streaming": STREAMING}[policy]
    options = {"kv_groups": lserve, "kv_dtype": kv_dtype}
    warm = make_engine(**options)
    plain = run(warm, name)
    assert run(make_engine(**options), name, drafter="recycling:budget=6") == plain
    assert run(make_engine(**options), name, drafter="self_speculation") == plain

    # 210 + 12 tokens are 14 places; the pool has pages for the longest request and little more.
    tight = make_engine(pages={"dense": 16, "lserve": 16, "streaming": 12}[policy], host_memory=1 << 22, **options)
    assert run(tight, name) == plain
    assert tight.scheduler.num_preemptions > 0

    again = generate(warm, prompts(), SamplingParams(max_tokens=12, attention=name, drafter="none", ignore_eos=True))
    assert [r.token_ids for r in again] == plain
    assert again[0].stats["cached_tokens"] == 208


def test_a_warmed_document_comes_back_without_the_pages_that_nobody_reads(lserve: str, tmp_path: Path) -> None:
    options = {"kv_groups": lserve, "kv_dtype": "int8", "warm_folder": tmp_path}
    document = prompts()[0]
    params = SamplingParams(max_tokens=8, attention=lserve, ignore_eos=True)
    with AsyncEngine(make_engine(**options)) as door:
        door.warm("book", document, lserve)
    engine = make_engine(**options)
    result = generate(engine, [[*document, 7]], params)[0]
    assert result.stats["cached_tokens"] == 208
    assert engine.blocks.restored < 2 * 208 // 16
    assert result.token_ids == generate(make_engine(**options), [[*document, 7]], params)[0].token_ids
    other = make_engine(**{**options, "kv_groups": "none"})
    assert generate(other, [[*document, 7]], params)[0].stats["cached_tokens"] == 0


def test_what_a_request_holds(lserve: str) -> None:
    prompt = [3 + i * i % 90 for i in range(480)]
    dense = most_bytes(make_engine(), "dense", prompt)
    assert dense == 32 * make_engine().runner.pool.page_bytes
    together = make_engine(kv_groups="none")
    grouped = make_engine(kv_groups=lserve)
    assert most_bytes(grouped, lserve, prompt) < 0.75 * most_bytes(together, lserve, prompt)
    assert most_bytes(make_engine(), STREAMING, prompt) < 0.4 * dense
    small = make_engine(kv_dtype="int8")
    assert most_bytes(small, "dense", prompt) == dense * (16 + 2) // (16 * 8)


def test_a_streaming_request_is_longer_than_the_pool() -> None:
    """A ring in a pool that holds less than the prompt, whose rows are those of a large pool."""
    prompt = [3 + i * i % 90 for i in range(480)]
    params = SamplingParams(max_tokens=20, attention=STREAMING, drafter="none", ignore_eos=True)
    small, large = make_engine(pages=20, step_tokens=16), make_engine(step_tokens=16)
    assert generate(small, [prompt], params)[0].token_ids == generate(large, [prompt], params)[0].token_ids
    small.check_integrity()


def test_the_window_is_what_the_pool_holds_under_the_default_policy(lserve: str) -> None:
    for name, groups, least in (("dense", "none", 320), ("dense", lserve, 320), (lserve, "auto", 400)):
        engine = make_engine(pages=20, attention=name, kv_groups=groups, step_tokens=16)
        admission = Admission(engine)
        assert least <= admission.window < 512
        new = SamplingParams(max_tokens=admission.window - 300)
        admission.check_prompt([5] * 300, new)
        with pytest.raises(PromptTooLong, match="pages of KV"):
            admission.check_prompt([5] * 301, new)
    assert Admission(make_engine(attention=lserve)).window == 512


def test_dropped_pages_are_marked_in_the_request(lserve: str) -> None:
    engine = make_engine(attention=lserve)
    request_id = engine.add_request(prompts()[0], SamplingParams(max_tokens=20, ignore_eos=True))
    request = engine._requests[request_id]
    while request.num_output < 5:
        engine.step()
    holes = [[i for i, place in enumerate(request.pages) if place[g] == GONE] for g in (0, 1)]
    assert holes == [[], list(request.gone(1, request.num_computed))]
    assert holes[1]


def test_int8_is_near_the_numbers_it_stands_for() -> None:
    """The tolerance of int8 KV: its error in the logits, against the same model with KV as it is."""
    logits = {}
    for kv_dtype in ("auto", "int8"):
        engine = make_engine("smollm3", kv_dtype=kv_dtype)
        seen: list[torch.Tensor] = []
        forward = engine.runner.run
        engine.runner.run = lambda parts, seen=seen, forward=forward: seen.append(forward(parts)) or seen[-1]  # type: ignore[method-assign, func-returns-value, misc]
        generate(engine, [prompts()[2]], SamplingParams(max_tokens=1))
        logits[kv_dtype] = seen[-1].logits[-1]
    error = (logits["auto"] - logits["int8"]).abs().max() / logits["auto"].std()
    assert 0 < error < 0.2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kv_groups": "quest:budget=512"}, "no streaming heads"),
        ({"kv_groups": "lserve"}, "folio calibrate"),
        ({"attention": "nonsense"}, "unknown attention policy"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        make_engine(**options)
