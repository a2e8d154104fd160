"""The table of `auto` for one model: what is tried is told, and what the table says follows from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from eval.auto_table import DENSE, table_of, write_table
from eval.calibrate import command, make_table
from eval.errors import EvalError
from eval.planted import plant
from service.engine.loading.checkpoint import load_model, prepare
from service.engine.options import parse_policy
from service.errors import InvalidRequest
from sparse_attn.errors import PolicyError
from sparse_attn.plan.policies import Auto
from sparse_attn.plan.policy import ModelShape

SPARSE = "streaming:sink=64,local=64,gate=0,block=64"


def tried(length: int, **policies: tuple[float, float]) -> list[dict[str, Any]]:
    recall = {"numbers": 32, "recalled": 0.75, "recalled_by_dense": 0.75}
    return [
        {"length": length, "policy": name, "first_token_s": seconds, "rise": rise, **recall}
        for name, (seconds, rise) in {DENSE: (1.0, 0.0), **policies}.items()
    ]


def test_the_fastest_that_loses_little_is_a_lengths_policy() -> None:
    rows = [
        *tried(1000, skip=(0.98, 0.0), streaming=(0.5, 0.02)),  # too slow; too lossy
        *tried(2000, skip=(0.9, 0.001), streaming=(0.5, 0.02)),
        *tried(4000, skip=(0.8, 0.001), streaming=(0.4, 0.009)),
        *tried(8000, skip=(0.8, 0.001), streaming=(0.3, 0.009)),
    ]
    assert table_of(rows, 0.01) == [
        {"min_length": 0, "policy": "dense"},
        {"min_length": 2000, "policy": "skip+dense"},
        {"min_length": 4000, "policy": "streaming+dense"},
    ]
    assert [row["policy"] for row in table_of(rows, 0.0)] == ["dense"]
    back = [*rows, *tried(16000, skip=(1.0, 0.0), streaming=(0.3, 0.5))]
    assert table_of(back, 0.01)[-1] == {"min_length": 16000, "policy": "dense"}


@pytest.mark.parametrize(("dense", "own", "admitted"), [(0.75, 0.69, True), (0.75, 0.65, False), (1.0, 0.9, False)])
def test_who_forgets_more_than_a_standard_error_is_not_in_the_table(dense: float, own: float, admitted: bool) -> None:
    rows = tried(1000, streaming=(0.5, 0.0))
    rows[1] |= {"recalled": own, "recalled_by_dense": dense}
    assert (table_of(rows, 0.01)[-1]["policy"] == "streaming+dense") is admitted


def test_numbers_are_told_at_even_depths_and_again_at_the_end() -> None:
    def encode(text: str) -> list[int]:
        return [int(word) if word.isdigit() else 7 for word in text.replace(".", " .").split()]

    text = [0] * 1000
    made = plant(encode, text, 300, seed=1)
    told = [i for i, token in enumerate(made.ids) if token >= 10**4]
    assert len(made.ids) == 1000
    assert len(made.numbers) == 7 == len(told) / 2
    assert [at.start for at in made.numbers] == told[7:]
    assert {made.ids[i] for i in told[:7]} == {made.ids[i] for i in told[7:]}
    assert [made.ids[i] for i in told[:7]] != [made.ids[i] for i in told[7:]]
    gaps = [b - a for a, b in pairwise(told[:7])]
    assert max(gaps) - min(gaps) <= 1
    assert (made.scored.start, made.scored.stop) == (told[6] + 2, told[6] + 302)
    assert set(made.ids[made.scored]) == {0}, "of the text alone"


def test_auto_reads_what_was_written(tmp_path: Path, random_llama: Callable[..., Any]) -> None:
    path = tmp_path / "table.json"
    loaded = prepare("tiny", random_llama())
    path.write_text(json.dumps({"cuda": [{"min_length": 0, "policy": [{"name": "dense"}]}]}))
    table = [{"min_length": 0, "policy": "dense"}, {"min_length": 2000, "policy": f"{SPARSE}+dense"}]
    write_table(path, "cpu", table, loaded)
    shape = ModelShape(2, 4, 2, 8)
    auto = Auto(table=str(path))
    auto.check(shape)
    assert auto.resolve(1999, shape) == parse_policy("dense")
    assert auto.resolve(2000, shape) == parse_policy(f"{SPARSE}+dense")
    assert json.loads(path.read_text()).keys() == {"model", "cpu", "cuda"}


def test_a_table_of_another_model_is_neither_used_nor_written_to(
    tmp_path: Path, random_llama: Callable[..., Any]
) -> None:
    path, table = tmp_path / "table.json", [{"min_length": 0, "policy": "dense"}]
    write_table(path, "cpu", table, prepare("tiny", random_llama()))
    with pytest.raises(PolicyError, match=r"measured for tiny \(2 layers of 4 heads\), the model has 3 of 4"):
        Auto(table=str(path)).check(ModelShape(3, 4, 2, 8))
    with pytest.raises(EvalError, match=r"table\.json is the table of tiny"):
        write_table(path, "cpu", table, prepare("other", random_llama(num_hidden_layers=3)))


def test_a_model_gets_its_table_from_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model("embedded", "float32")
    text = " ".join(f"In the year {1800 + n} the mill by the river ground corn for parish {n}." for n in range(90))
    kept: list[int] = []
    monkeypatch.setattr("eval.auto_table.FORGETFUL", 1.0)
    bounds: dict[str, Any] = {"most": 10.0, "windows": 2}
    found = make_table(
        loaded, text, [320, 256], tmp_path, [SPARSE], **bounds, keep=lambda found: kept.append(len(found["rows"]))
    )
    assert kept == [1, 2, 3, 4]
    assert [(row["length"], row["policy"]) for row in found["rows"]] == [
        (length, policy) for length in (256, 320) for policy in (DENSE, SPARSE)
    ]
    assert [row["rise"] == 0 for row in found["rows"]] == [True, False] * 2
    assert all(row["first_token_s"] > 0 for row in found["rows"])
    assert {row["windows"] for row in found["rows"]} == {2}
    assert found["table"] == table_of(found["rows"], 10.0)
    again = make_table(loaded, text, [320, 256], tmp_path, [SPARSE], **bounds, known=found["rows"])
    assert again == found, "what is known is not measured again"
    monkeypatch.setattr("eval.auto_table.LEAST", -1.0)
    hopeless = make_table(loaded, text, [256, 320], tmp_path, [SPARSE], most=-1.0, windows=2)["rows"]
    assert [(row["length"], row["policy"], row["windows"]) for row in hopeless] == [
        (256, DENSE, 2),
        (256, SPARSE, 1),  # who loses much in the first window is given no second
        (320, DENSE, 2),
    ]
    assert parse_policy(f"auto:table={tmp_path / 'crossovers.json'}")
    with pytest.raises(EvalError, match="two windows of 4096 are needed"):
        make_table(loaded, text, [4096], tmp_path, [SPARSE], most=0.01)


def test_the_report_has_what_the_table_was_chosen_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.calibrate.POLICIES", (SPARSE,))
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"In {1800 + n} the mill by the river ground corn for parish {n}." for n in range(90)))
    folder = tmp_path / "found"
    options: dict[str, Any] = {"length": 512, "output": folder, "pictures": False, "auto": True, "windows": 2}
    command("embedded", text, lengths="256", **options)
    report = json.loads((folder / "report.json").read_text())
    assert [row["policy"] for row in report["auto"]["rows"]][:2] == [DENSE, SPARSE]
    assert report["model"] == "embedded"
    command("embedded", text, lengths="256,320", resume=True, **options)
    longer = json.loads((folder / "report.json").read_text())
    assert longer["seconds"] == report["seconds"], "the search is not made again"
    assert longer["auto"]["rows"][: len(report["auto"]["rows"])] == report["auto"]["rows"]
    assert {row["length"] for row in longer["auto"]["rows"]} == {256, 320}
    with pytest.raises(EvalError, match=r"report\.json was made with windows=2, not 3"):
        command("embedded", text, lengths="256", resume=True, **{**options, "windows": 3})
    with pytest.raises(EvalError, match=r"report\.json was made with budget=1024, not 512"):
        command("embedded", text, lengths="256", resume=True, budget=512, **options)
    with pytest.raises(EvalError, match=r"The model holds \d+ tokens"):
        command("embedded", text, length=512, output=tmp_path / "none", auto=True, lengths="256,9999999")
    with pytest.raises(EvalError, match="two policies"):
        command("embedded", text, output=tmp_path / "none", auto=True, lengths="256", policies=f"{SPARSE}+quest")
    text.write_text(text.read_text() + " The mill is still.")
    with pytest.raises(EvalError, match=r"report\.json was made with text_sha256="):
        command("embedded", text, lengths="256", resume=True, **options)
    with pytest.raises(InvalidRequest, match="nosuch"):
        command("embedded", text, output=tmp_path / "none", auto=True, lengths="256", policies=f"{SPARSE};nosuch")
    with pytest.raises(EvalError, match="'many' is no length"):
        command("nosuch", text, output=tmp_path / "none", auto=True, lengths="256,many")
    assert not (tmp_path / "none").exists(), "refused before anything is searched"
