"""Comparisons and reports over folders of results."""

import csv
import io
import json
import math
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from typer.testing import CliRunner

from eval.cli import app
from eval.errors import EvalError
from eval.harness.compare import bootstrap, compare, divergence, mcnemar
from eval.harness.options import RunOptions
from eval.harness.plan import Plan
from eval.harness.plots import front
from eval.harness.progress import TextProgress
from eval.harness.prompting import OfficialPrompter
from eval.harness.report import report
from eval.harness.run import run
from eval.tasks.sources import sources


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer, fake_engine) -> Path:
    """Three engines over two tasks and two lengths; `suffix` equals `dense`, `lossy` errs."""
    folder = tmp_path_factory.mktemp("results")
    engines = [fake_engine("dense"), fake_engine("suffix", drafter="suffix"), fake_engine("lossy", wrong_every=2)]
    prompter = OfficialPrompter(tokenizer, "yarn")
    found = sources(["passkey", "niah_single_1"], data=None, text=None, count=10, seed=0)
    options = RunOptions(length=(1024, 2048), limit=(10,), model=("fake",), output=folder)
    run(Plan(options, [(e, prompter) for e in engines], found), TextProgress(io.StringIO()))
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy that a test may write to."""
    return Path(shutil.copytree(made, tmp_path / "results"))


def test_a_lossless_pair_is_identical(folder):
    found = compare(folder / "dense", folder / "suffix")
    assert (found["lossless"], found["pairs"], found["identical"], found["divergences"]) == (True, 40, 40, [])
    assert found["all"]["official_v1"]["delta"] == 0
    assert found["all"]["official_v1"]["mcnemar"]["p"] == 1


def test_a_lossless_pair_that_differs_fails_and_shows_where(folder):
    result = CliRunner().invoke(app, ["compare", str(folder / "dense"), str(folder / "lossy")])
    assert result.exit_code == 1
    assert "token 0" in result.output


def test_a_lossy_pair_gets_a_delta_with_an_interval(folder):
    result = CliRunner().invoke(app, ["compare", str(folder / "dense"), str(folder / "lossy"), "--lossy", "--json"])
    assert result.exit_code == 0
    figures = json.loads(result.stdout)["tasks"]["passkey-style_1024"]["official_v1"]
    assert figures["delta"] == pytest.approx(figures["b"] - figures["a"])
    assert figures["low"] <= figures["delta"] <= figures["high"] <= 0
    assert figures["mcnemar"]["only_b"] == 0
    assert figures["mcnemar"]["only_a"] == round((figures["a"] - figures["b"]) / 10)


def test_nothing_shared_is_an_error(folder, tmp_path):
    (tmp_path / "empty").mkdir(exist_ok=True)
    with pytest.raises(EvalError, match="share no task"):
        compare(folder / "dense", tmp_path / "empty")


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_exact_binomial_test(pairs):
    found = mcnemar([a for a, _ in pairs], [b for _, b in pairs])
    n = found["only_a"] + found["only_b"]
    expected = binomtest(found["only_a"], n, 0.5).pvalue if n else 1.0
    assert found["p"] == pytest.approx(min(1.0, expected))
    assert found["only_a"] == sum(a and not b for a, b in pairs)


def test_bootstrap_covers_the_normal_interval():
    a = [float(i % 2) for i in range(400)]
    b = [float(i % 4 < 3) for i in range(400)]
    found = bootstrap(a, b)
    delta = [y - x for x, y in zip(a, b, strict=True)]
    mean = sum(delta) / 400
    half = 1.96 * math.sqrt(sum((d - mean) ** 2 for d in delta) / 400 / 400)
    assert found["delta"] == pytest.approx(mean)
    assert found["low"] == pytest.approx(mean - half, abs=0.01)
    assert found["high"] == pytest.approx(mean + half, abs=0.01)


def test_divergence_in_length_is_one():
    sample = {"id": 1, "text": "", "prompt_sha256": "x"}
    found = divergence("f", {**sample, "token_ids": [1, 2, 3]}, {**sample, "token_ids": [1, 2]})
    assert (found.at, found.a, found.b) == (2, [3], [])
    assert divergence("f", {**sample, "token_ids": [1]}, {**sample, "token_ids": [1]}) is None


def test_report_writes_every_form(folder):
    written = {path.name for path in report(folder)}
    pictures = {
        "score_speed.png",
        "score_length.png",
        "ttft_length.png",
        "decode_length.png",
        "depth_passkey-style.png",
    }
    assert {"report.md", "report.csv", "report.html"} | pictures <= written
    rows = list(csv.DictReader((folder / "report.csv").open()))
    assert len(rows) == 12
    perfect = next(row for row in rows if row["engine"] == "dense" and row["task"] == "passkey-style")
    assert float(perfect["official_v1"]) == 100
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(written) - 3
    assert "http" not in page.replace("http-equiv", "")
    report_text = (folder / "report.md").read_text()
    assert "| dense | 1024 | 10 (0) | 100.00 ± 0.00 |" in report_text
    assert re.search(r"Harness \(.*\): -?\d+\.\d\d% of the 2 s", report_text)


def test_who_is_beaten_in_both_is_not_at_the_front():
    assert front([(1, 50), (2, 80), (2, 60), (3, 80), (0.5, 10), (2, 80)]) == [(1, 50), (2, 80), (0.5, 10), (2, 80)]


def test_report_escapes_what_it_shows(folder):
    path = folder / "results.json"
    summary = json.loads(path.read_text())
    summary["cells"][0]["engine"] = "<script>alert(1)</script>"
    path.write_text(json.dumps(summary))
    report(folder)
    assert "<script>" not in (folder / "report.html").read_text()


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(EvalError, match=r"results\.json"):
        report(tmp_path)
