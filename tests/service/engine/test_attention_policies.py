"""Sparse policies in the engine: with everything else it does, and lossless under speculation."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import pytest

from service.engine.engine import Engine
from service.engine.params import SamplingParams
from service.errors import InvalidRequest
from sparse_attn.plan.formats import write_duo, write_minference
from sparse_attn.plan.patterns import VerticalSlash

from .conftest import generate, make_engine, make_model

SPARSE = [
    "streaming:sink=16,local=32,gate=0,block=16",
    "lserve:budget=96,sink=16,recent=16,local=16,prefill_local=32,streaming=0,block=16",
    "quest:budget=96,sink=16,recent=16,dense_layers=0,interval=4",
    "xattention:gate=0,p=0.5,block=16,stride=4,sink=16,local=16",
    "trianglemix:gate=0,local=16,last=16,block=16",
    "flexprefill:gate=0,minimum=16,gamma=0.2,block=16",
    "skip:gate=0,lambda=1e6,block=16",
]


def prompts(count: int = 3) -> list[list[int]]:
    rng = random.Random(11)
    return [[rng.randrange(3, 97) for _ in range(n)] for n in [210, 150, 90][:count]]


def run(engine: Engine, attention: str, **changes: Any) -> list[Any]:
    params = SamplingParams(
        **{"max_tokens": 12, "attention": attention, "drafter": "none", "ignore_eos": True, **changes}
    )
    return generate(engine, prompts(), params)


def ids(results: list[Any]) -> list[list[int]]:
    return [r.token_ids for r in results]


@pytest.fixture(scope="module")
def answered() -> Callable[..., tuple[Engine, list[Any]]]:
    """An engine that has answered under a policy by plain decoding, and the answers; each once."""

    @functools.cache
    def made(attention: str, family: str = "llama") -> tuple[Engine, list[Any]]:
        engine = make_engine(family)
        return engine, run(engine, attention)

    return made


def test_a_budget_of_the_whole_length_is_dense() -> None:
    dense = ids(run(make_engine(), "dense"))
    assert ids(run(make_engine(), "lserve:budget=512,streaming=0,block=64")) == dense
    assert ids(run(make_engine(), "quest:budget=512,dense_layers=0,block=64")) == dense
    assert ids(run(make_engine(), "skip:gate=0,lambda=1e-9")) == dense


@pytest.mark.parametrize("attention", SPARSE)
def test_a_policy_is_sparse_and_its_density_is_told(attention: str, answered: Any) -> None:
    stats = answered(attention)[1][0].stats
    assert min(stats["prefill_density"], stats["decode_density"]) < 1
    assert stats["attention"].startswith(attention.partition(":")[0])


@pytest.mark.parametrize("attention", SPARSE)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_speculation_is_lossless_under_a_policy(attention: str, family: str, answered: Any) -> None:
    drafted = run(make_engine(family), attention, drafter="recycling:budget=6")
    assert ids(drafted) == ids(answered(attention, family)[1])


@pytest.mark.parametrize("attention", SPARSE)
def test_speculation_is_lossless_over_cached_pages_too(attention: str, answered: Any) -> None:
    engine, sampled = answered(attention)[0], {"temperature": 0.8, "seed": 3}
    assert ids(run(engine, attention, drafter="suffix", **sampled)) == ids(run(engine, attention, **sampled))


@pytest.mark.parametrize("attention", SPARSE)
def test_preemption_and_the_prefix_cache_change_nothing_under_a_policy(attention: str, answered: Any) -> None:
    warm, first = answered(attention)
    tight = make_engine(pages=12 if attention.startswith("streaming") else 17)  # which frees pages
    assert ids(run(tight, attention)) == ids(first)
    assert tight.scheduler.num_preemptions > 0
    again = run(warm, attention)
    assert ids(again) == ids(first)
    assert again[0].stats["cached_tokens"] > 0


def test_pages_of_one_policy_are_not_read_under_another() -> None:
    engine = make_engine()
    run(engine, "streaming:sink=16,local=32,gate=0,block=16")
    assert run(engine, "dense")[0].stats["cached_tokens"] == 0


@pytest.mark.parametrize(
    ("attention", "words"),
    [
        ("nonsense", "unknown attention policy"),
        ("quest:budget=1", "budget=1"),
        ("lserve:colour=red", "no option 'colour'"),
        ("lserve", "folio calibrate"),
        ("skip:lambda=-1", "lambda=-1 must not be negative"),
    ],
)
def test_bad_policies_are_refused_by_name(attention: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        make_engine().add_request([3], SamplingParams(attention=attention))


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ("minference:file={patterns}", "it belongs to another model"),
        ("lserve:heads={alpha}", "it belongs to another model"),
        ("quest:budget=256", "budget=256 leaves no page to select"),
        ("xattention:block=100", "block=100 must be a multiple of the page size 64"),
        ("xattention:stride=48", "stride=48 must divide block=128"),
        ("lserve", "no head file ships for this model"),
        ("sparse", "unknown attention policy"),
    ],
)
def test_what_does_not_suit_the_model_is_refused_before_weights_are_loaded(tmp_path, monkeypatch, attention, message):
    make_model().config.save_pretrained(tmp_path)  # and no weights
    write_minference(tmp_path / "patterns.json", [[VerticalSlash(100, 800)] * 8] * 4)
    write_duo(tmp_path / "alpha.tsv", [[0.1, 0.9, 0.5, 0.5]] * 4)
    text = attention.format(patterns=tmp_path / "patterns.json", alpha=tmp_path / "alpha.tsv")
    monkeypatch.setattr("service.engine.engine.load_model", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(InvalidRequest, match=message):
        Engine.from_pretrained(str(tmp_path), attention=text)
