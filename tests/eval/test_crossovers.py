"""``folio bench crossovers``: what it measures is complete, and the table follows from it."""

from types import SimpleNamespace

import pytest

from eval.bench.attention.crossovers import Options, make_table, run, write_table
from eval.errors import EvalError
from service.engine.options import parse_policy
from sparse_attn.plan.policies import Auto
from sparse_attn.plan.policy import ModelShape


@pytest.fixture(scope="module")
def loaded(random_llama):
    tokenizer = SimpleNamespace(encode=lambda text, add_special_tokens: [min(ord(c), 255) for c in text])
    return SimpleNamespace(
        name="tiny",
        model=random_llama(vocab_size=256, hidden_size=64, max_position_embeddings=1024),
        tokenizer=tokenizer,
        max_len=1024,
    )


def test_every_candidate_is_measured_at_every_length(loaded):
    prefill = ("xattention:p=0.5,means=true", "dense")
    decode = ("quest:budget=512,recent=64,sink=64,dense_layers=0",)
    figures = run(loaded, Options(lengths=(768, 512), chunk=256, prefill=prefill, decode=decode, repeats=1))
    assert [(r["phase"], r["length"], r["policy"]) for r in figures["rows"]] == [
        (phase, length, policy)
        for length in (512, 768)
        for phase, policies in (("prefill", prefill), ("decode", decode))
        for policy in policies
    ]
    by_policy = {(r["policy"], r["length"]): r for r in figures["rows"]}
    assert 0 < by_policy[prefill[0], 768]["density"] < 1
    assert by_policy[prefill[0], 768]["error"] > 0
    assert by_policy["dense", 768]["density"] == 1
    assert by_policy["dense", 768]["error"] == 0
    assert by_policy[decode[0], 768]["density"] < 1
    assert all(r["ms"] == pytest.approx(r["index_ms"] + r["kernel_ms"]) for r in figures["rows"])
    for row in figures["table"]:
        parse_policy(row["policy"])


def row(phase, length, policy, ms, error=0.01, dense=10.0):
    return {"phase": phase, "length": length, "policy": policy, "ms": ms, "dense_ms": dense, "error": error}


def test_the_table_takes_the_fastest_that_is_near_enough_from_where_it_stays_faster():
    rows = [
        row("prefill", 1000, "xattention", 8.0),  # faster here by chance, slower at 2000
        row("prefill", 2000, "xattention", 11.0),
        row("prefill", 4000, "xattention", 7.0),
        row("prefill", 8000, "xattention", 5.0),
        row("prefill", 8000, "flexprefill", 1.0, error=0.5),
        row("prefill", 8000, "trianglemix", 6.0),
        row("decode", 4000, "quest:budget=512", 9.9),
        row("decode", 8000, "quest:budget=512", 2.0),
    ]
    assert make_table(rows, max_error=0.05) == [
        {"min_length": 0, "policy": "dense"},
        {"min_length": 4000, "policy": "xattention:gate=4000+dense"},
        {"min_length": 8000, "policy": "xattention:gate=4000+quest:budget=512,gate=8000"},
    ]
    assert make_table(rows[:2], max_error=0.05) == [{"min_length": 0, "policy": "dense"}]


def test_auto_reads_the_table_that_was_written(tmp_path, loaded):
    shape, path = ModelShape(2, 4, 2, 16, page_size=16), tmp_path / "crossovers.json"
    write_table(path, "cuda", [{"min_length": 0, "policy": "dense"}], loaded)
    rows = [{"min_length": 0, "policy": "dense"}, {"min_length": 90, "policy": "xattention+quest"}]
    write_table(path, "cpu", rows, loaded)
    Auto(table=str(path)).check(shape)
    assert Auto(table=str(path), device="cuda").resolve(100, shape) == parse_policy("dense")
    assert Auto(table=str(path)).resolve(89, shape) == parse_policy("dense")
    assert Auto(table=str(path)).resolve(90, shape) == parse_policy("xattention+quest")


def lost(right, quoted):
    return {"right_points_lost": right, "quoted_points_lost": quoted}


def test_counted_answers_decide_where_there_are_any():
    rows = [
        row("prefill", 8000, "trianglemix:deep=1.0", 1.0, error=0.5),
        row("prefill", 8000, "xattention", 2.0),
        row("decode", 8000, "quest:budget=512", 2.0, error=0.5),
    ]
    counted = {
        "trianglemix:deep=1.0,gate=1024+quest:interval=4": {"passkey": lost(0.9, 1.0), "kv": lost(2.0, 0.0)},
        "quest:budget=512": {"passkey": lost(0.0, 0.0), "kv": lost(0.0, 2.1)},
    }
    assert make_table(rows, 0.05, counted) == [
        {"min_length": 0, "policy": "dense"},
        {"min_length": 8000, "policy": "trianglemix:deep=1.0,gate=8000+dense"},
    ]


def test_lengths_that_the_model_does_not_hold_are_refused(loaded):
    with pytest.raises(EvalError, match="holds 1024 tokens"):
        run(loaded, Options(lengths=(4096,)))
