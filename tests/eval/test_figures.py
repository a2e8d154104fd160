"""Result files and the bench command group."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import eval.bench
from eval.bench.cli import app
from eval.figures import machine, save_result, write_atomically

BENCH = '''
"""Measures nothing."""
import typer
from eval.figures import report_result

def run(n: int) -> dict:
    return {"n": n}

def command(n: int = 3, as_json: bool = typer.Option(False, "--json"), output: str = "") -> None:
    """Measure nothing, n times."""
    from pathlib import Path
    report_result("nothing", run(n), as_json=as_json, output=Path(output))
'''


def test_a_result_names_its_command_code_and_machine(tmp_path):
    path = save_result("x", {"a": np.float32(0.5), "b": np.arange(2)}, "folio bench x", tmp_path / "x.json")
    found = json.loads(path.read_text())
    assert found["figures"] == {"a": 0.5, "b": [0, 1]}
    assert found["command"] == "folio bench x"
    assert found["machine"] == machine()
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["libraries"]["torch"]
    assert len(found["git"].rstrip("+")) == 40
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_figure_that_is_no_number_is_refused_and_the_old_file_stays(tmp_path):
    path = save_result("x", {"a": 1}, "c", tmp_path / "x.json")
    before = path.read_bytes()
    with pytest.raises(ValueError):
        save_result("x", {"a": float("nan")}, "c", path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "x", "\ud800")
    assert list(tmp_path.iterdir()) == []


def test_bench_modules_are_commands_and_others_are_not(tmp_path, monkeypatch):
    (tmp_path / "nothing.py").write_text(BENCH)
    (tmp_path / "helpers.py").write_text("raise ImportError('listing must not import this')\n")
    monkeypatch.setattr(eval.bench, "__path__", [str(tmp_path)])
    whole = typer.Typer()
    whole.add_typer(app, name="bench")
    shown = CliRunner().invoke(whole, ["bench", "--help"])
    assert "nothing" in shown.output
    assert "helpers" not in shown.output
    ran = CliRunner().invoke(whole, ["bench", "nothing", "--n", "4", "--json", "--output", str(tmp_path / "n.json")])
    assert json.loads(ran.stdout) == {"n": 4}
    assert json.loads((tmp_path / "n.json").read_text())["figures"] == {"n": 4}
    assert CliRunner().invoke(whole, ["bench", "absent"]).exit_code == 2
    assert Path(eval.bench.__path__[0]) == tmp_path
