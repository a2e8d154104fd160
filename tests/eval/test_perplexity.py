"""Perplexity under policies: it is transformers' own where attention is dense, and rises where keys are left out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from eval.bench.attention.perplexity import Options, largest, row, run
from eval.errors import EvalError
from eval.losses import Losses, cut, rise
from service.reader import MODEL_DIR


def book(path: Path) -> Path:
    path.write_text(
        " ".join(f"In the year {1800 + n} the mill by the river ground corn for parish {n}." for n in range(90))
    )
    return path


def test_dense_is_transformers_own_and_a_narrow_window_costs(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = book(tmp_path / "book.txt")
    policies = ("streaming:sink=64,local=64,gate=0,block=64", "skip:lambda=0,gate=0", "skip:lambda=1e6,gate=0")
    options = Options(
        model="embedded", dtype="float32", lengths=(512,), policies=policies, text=text, windows=2, scored=128
    )
    dense, streaming, none, all_ = run(options)["rows"]
    ids = AutoTokenizer.from_pretrained(MODEL_DIR)(text.read_text(), add_special_tokens=False).input_ids
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    losses = []
    for window in cut(ids, 512, 2, 128):
        with torch.inference_mode():
            rows = model(input_ids=torch.tensor([window])).logits[0].log_softmax(-1)
        losses.append(-float(rows[range(383, 511), window[384:]].mean()))
    assert dense["loss"] == pytest.approx(sum(losses) / 2, abs=1e-4)
    assert dense["over_dense"] == 0
    assert none["loss"] == dense["loss"]
    assert streaming["over_dense"] != 0
    assert streaming["density"] < 1
    assert all_["density"] < 1


def test_lambda_is_doubled_until_it_costs_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    def loses(engine: object, windows: object, scored: int, policy: str) -> Losses:
        return Losses([1 + 0.001 * float(policy.partition("lambda=")[2])] * 2, 0.5)

    monkeypatch.setattr("eval.bench.attention.perplexity.read", loses)
    dense = Losses([1.0, 1.0], 1.0)
    found = largest(None, [], Options(most=0.003), dense)  # type: ignore[arg-type]
    assert next(iter(found)) == "skip:lambda=0.015625"
    assert list(found)[-2:] == ["skip:lambda=2", "skip:lambda=4"]
    assert rise(found["skip:lambda=2"], dense) <= 0.003 < rise(found["skip:lambda=4"], dense)


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="two windows of 4096 are needed"):
        cut(range(5000), 4096, 2, 64)


def test_a_rise_is_a_share_of_perplexity_and_its_error_that_of_pairs() -> None:
    dense = Losses([1.0, 3.0], 1.0)
    worse = Losses([1.1, 3.1], 0.5)
    assert rise(worse, dense) == pytest.approx(math.exp(0.1) - 1)
    assert row(10, "skip", worse, dense)["over_dense_stderr"] == pytest.approx(0, abs=1e-9)
    with pytest.raises(EvalError, match="no context before the 64"):
        cut(range(1000), 64, 2, 64)
