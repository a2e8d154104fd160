"""What the wheel holds of eval: no benchmarks, no results, no recipe; and what `folio bench` then says."""

import tomllib

import pytest
import typer
from setuptools import find_packages
from typer.testing import CliRunner

from eval import cli
from eval.errors import EvalError
from eval.figures import ROOT

CONFIGURED = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_wheel_has_the_harness_alone():
    found = CONFIGURED["tool"]["setuptools"]["packages"]["find"]
    packages = set(find_packages(str(ROOT), include=found["include"], exclude=found["exclude"]))
    assert {name for name in packages if name.startswith("eval")} == {
        "eval",
        "eval.harness",
        "eval.parsing",
        "eval.qa",
        "eval.scoring",
        "eval.tasks",
    }
    globs = CONFIGURED["tool"]["setuptools"]["package-data"]["eval"]
    data = {path.relative_to(ROOT / "eval").parts[0] for glob in globs for path in (ROOT / "eval").glob(glob)}
    assert data == {"parsing", "tasks"}


def test_every_command_is_in_the_wheel():
    points = CONFIGURED["project"]["entry-points"]["folio.commands"]
    assert points.keys() >= {"bench", "eval", "calibrate"}
    for point in points.values():
        assert point.split(":")[0] in ("eval.cli", "eval.calibrate")


@pytest.mark.parametrize("arguments", [[], ["decode"], ["--help"]])
def test_without_a_checkout_bench_says_where_it_is(arguments, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    whole = typer.Typer()
    whole.add_typer(cli.bench_app(), name="bench")
    with pytest.raises(EvalError) as refused:
        CliRunner().invoke(whole, ["bench", *arguments], catch_exceptions=False)
    assert "in a checkout" in refused.value.detail
