"""Benches that run an engine, small: their tokens come by the door, and their figures are whole."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from eval.bench.attention import accuracy, decode, kv_memory, prefill
from eval.bench.runner import Timing, agreeing, ask, build, plain, random_ids, text_ids
from eval.bench.serving import batch
from eval.errors import EvalError
from service.engine.loading.checkpoint import LoadedModel, load_model

PLACES = "London Paris Oslo Rome Berlin Madrid Vienna Prague Dublin Athens Lisbon Warsaw Sofia Tirana Minsk"
WORDS = "river mountain garden window letter captain harbour lantern forest village market bridge"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(0)
    words, places = WORDS.split(), PLACES.split()
    lines = (f"The {' '.join(draw.sample(words, 6))} was in {draw.choice(places)} in year {n}." for n in range(300))
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(lines))
    return path


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("embedded")


def test_times_of_a_prompt_are_those_of_its_tokens(loaded: LoadedModel) -> None:
    timing = Timing()
    with build(loaded, 1024) as engine:
        for _ in range(2):
            found = ask(engine, random_ids(100), plain(5), timing)
    assert len(found.token_ids) == 5
    assert timing.ids == found.token_ids
    assert (len(timing.first_s), len(timing.between_s)) == (2, 8)
    assert timing.first_s[-1] + sum(timing.between_s[4:]) == pytest.approx(found.times[-1])
    assert timing.figures()["decode_ms_per_token_median"] == pytest.approx(1e3 / timing.tokens_per_s)


def test_an_engine_that_fails_is_no_figure(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build(loaded, 512)
    monkeypatch.setattr(engine.engine.runner, "run", lambda slices: 1 / 0)
    with engine, pytest.raises(EvalError, match="the engine failed"):
        ask(engine, [3, 4, 5], plain(2))


def test_ids_agree_up_to_the_first_that_differs() -> None:
    assert agreeing([1, 2, 3], [1, 2, 4]) == 2
    assert agreeing([1, 2], [1, 2, 3]) == 2
    assert agreeing([2], [1]) == 0


def test_a_text_is_repeated_to_the_length_wanted(loaded: LoadedModel) -> None:
    once = text_ids(loaded, "one two three", 3)
    assert text_ids(loaded, "one two three", 8) == (3 * once)[:8]
    assert len(text_ids(loaded, None, 300)) == 300
    with pytest.raises(EvalError, match="empty"):
        text_ids(loaded, "", 5)


@pytest.mark.slow
def test_decode_beside_transformers_and_with_pages_selected(text: Path) -> None:
    options = decode.Options(
        contexts=(48,), new_tokens=3, repeats=2, text=text, reader_contexts=(1500,), policies=decode.POLICIES[1:]
    )
    figures = decode.run(options)
    [row] = figures["rows"]
    assert row["speedup"] > 0
    assert row["agreeing_ids"] == 3
    assert len(row["folio"]["first_token_s"]) == len(row["transformers"]["first_token_s"]) == 2
    dense, selected = figures["reader"]
    assert dense["speedup"] == 1
    assert selected["new_tokens"] == 3
    assert selected["ms_per_token"] > 0


def test_prefill_beside_transformers_and_under_a_policy(text: Path) -> None:
    options = prefill.Options(
        contexts=(48,), repeats=1, text=text, reader_contexts=(3000,), policies=("auto",), peers=()
    )
    figures = prefill.run(options)
    assert figures["rows"][0]["same_first_id"]
    dense, sparse = figures["reader"]
    assert (dense["system"], dense["density"], dense["speedup"]) == ("folio dense", 1.0, 1.0)
    assert 0 < sparse["density"] < 1
    assert 0 < sparse["kernel_s"] < sparse["ttft_s"]


def test_bookkeeping_is_a_share_of_decode_steps() -> None:
    assert 0 < batch.bookkeeping_share(batch=2, context=batch.PAGE, steps=4) < 1


def test_kv_is_read_between_steps() -> None:
    figures = kv_memory.run(kv_memory.Options(length=8192, new_tokens=4, step_tokens=1024, pages_only=True))
    dense, narrow, streaming, _ = figures["rows"]
    assert dense["pages"] == 8192 // 64
    assert dense["decode_bytes"] == dense["pages"] * dense["page_bytes"]
    assert dense["prefill_bytes"] == 7 * 1024 // 64 * dense["page_bytes"]  # before the last of eight chunks
    assert narrow["share_of_float32"] < 0.3
    assert streaming["share_of_dense"] < 0.9
    assert "seconds" not in dense


def test_answers_are_counted(text: Path) -> None:
    options = accuracy.Options(text=text, lengths=(1024,), policies=("dense",), tasks=("passkey",), questions=3)
    figures = accuracy.run(options)
    [row] = figures["rows"]
    assert row["questions"] == 3
    assert row["right"] >= row["quoted"] >= 0
    assert row["density"] == 1.0
    assert figures["policies"]["dense"]["passkey"]["right_points_lost"] == 0
