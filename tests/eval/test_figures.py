"""Result files, the bench command group, and what all benches share."""

import json
import sys

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import eval.bench
from eval.bench.attention.perplexity import Options as Reading
from eval.bench.base import BenchOptions, Cells, Result
from eval.bench.timer import Marks, Times, ceilings, ratio, time_in_turn, watch
from eval.cli import bench
from eval.errors import EvalError
from eval.figures import command_line, machine, save_result, write_atomically

BENCH = '''
"""Measures nothing."""
from dataclasses import dataclass
from typing import Annotated

from typer import Option

from eval.bench.base import BenchOptions, Lengths, bench


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """Measure nothing, n times."""

    n: Annotated[int, Option(min=1)] = 3
    lengths: Lengths = (1, 2)
    name: Annotated[tuple[str, ...], Option()] = ("a",)


def run(options):
    rows = [{"length": length, "seconds": 1 / 3, "parts": []} for length in options.lengths]
    return {"n": options.n, "names": list(options.name), "rows": rows} if options.n < 9 else None


command = bench(Options, run, "nothing", verdict=lambda figures: figures["n"] != 8)
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


@pytest.fixture
def folio(tmp_path, monkeypatch):
    """Runs a command line over a package of benchmarks that has one, and a helper that must not be imported."""
    (tmp_path / "nothing.py").write_text(BENCH)
    (tmp_path / "helpers.py").write_text("raise ImportError('listing must not import this')\n")
    path = [str(tmp_path), *eval.bench.__path__]
    monkeypatch.setattr(eval.bench, "__path__", path)
    whole = typer.Typer()
    whole.add_typer(bench, name="bench")
    yield lambda *arguments: CliRunner().invoke(whole, ["bench", *arguments])
    sys.modules.pop("eval.bench.nothing", None)


def test_bench_modules_are_commands_and_others_are_not(folio):
    shown = folio("--help").output
    assert "nothing" in shown
    assert "decode" in shown
    assert "helpers" not in shown
    assert "runner" not in shown
    assert folio("absent").exit_code == 2


def test_the_options_of_a_bench_reach_it_and_its_figures_a_file(folio, tmp_path):
    arguments = ("nothing", "--n", "4", "--lengths", "5,6", "--name", "x", "--name", "y")
    ran = folio(*arguments, "--json", "--output", str(tmp_path / "n.json"))
    figures = json.loads(ran.stdout)
    assert (figures["n"], figures["names"]) == (4, ["x", "y"])
    assert [row["length"] for row in figures["rows"]] == [5, 6]
    assert json.loads((tmp_path / "n.json").read_text())["figures"] == figures
    table = folio("nothing", "--output", str(tmp_path / "n.json")).output
    assert "0.3333" in table
    assert "parts" not in table


def test_a_bench_that_computes_here_tells_the_machines_limits_first(folio, tmp_path, monkeypatch):
    (tmp_path / "nothing.py").write_text(BENCH.replace("BenchOptions", "ThreadedOptions"))
    limits = {"read_gb_per_s": 15.0, "float32_gflops": 300.0, "bfloat16_gflops": 1800.0}
    monkeypatch.setattr(eval.bench.base, "ceilings", lambda: limits)
    shown = folio("nothing", "--output", str(tmp_path / "n.json")).output
    assert shown.index("bfloat16_gflops") < shown.index("seconds")
    assert shown.count("bfloat16_gflops") == 1
    assert json.loads((tmp_path / "n.json").read_text())["figures"]["ceilings"] == [limits]


def test_the_machines_limits_are_rates_in_either_dtype():
    found = ceilings(rounds=1, side=16)
    assert found.keys() == {"read_gb_per_s", "float32_gflops", "bfloat16_gflops"}
    assert min(found.values()) > 0


def test_a_bench_that_has_not_finished_or_has_failed_says_so(folio, tmp_path):
    output = ("--output", str(tmp_path / "n.json"))
    assert folio("nothing", "--n", "9", *output).exit_code == 3
    assert not (tmp_path / "n.json").exists()
    assert folio("nothing", "--n", "8", *output).exit_code == 1
    wrong = folio("nothing", "--lengths", "five", *output)
    assert "lengths" in str(wrong.exception)


def test_cells_are_found_by_their_place_and_kept_as_they_come():
    kept = []
    cells = Cells([{"a": 1, "b": 2, "s": 0.5}], lambda: kept.append(len(cells.rows)))
    assert cells.at(a=1, b=2)
    assert not cells.at(a=1, b=3)
    cells.add({"a": 1, "b": 3}, {"a": 1, "b": 4})
    assert kept == [3]
    assert len(cells.at(a=1)) == 3


def test_what_is_compared_takes_turns():
    calls = []
    ways = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = time_in_turn(ways, rounds=2)
    assert calls == ["a", "b", "a", "b", "a", "b"]  # the first of each is a warm-up
    assert [len(own) for own in times.values()] == [2, 2]
    assert Times([3.0, 1.0, 2.0]).best == 1.0
    assert Times([3.0, 1.0, 2.0]).median == 2.0
    assert Times([3.0, 1.0, 2.0]).spread == 3.0
    assert ratio([2.0, 9.0, 8.0], [1.0, 1.0, 4.0, 5.0]) == 2.0
    marks = Marks(parts=2, floats=1 << 10, side=16)
    assert [marks.bytes_per_s(1.0), marks.flops_per_s(1.0)] == [4096, 8192]
    assert time_in_turn(marks.ways(), rounds=1)["read"].best > 0


def test_calls_are_watched_while_they_are():
    class Owner:
        def work(self, x):
            return 2 * x

    with watch(Owner, "work") as seen:
        assert Owner().work(3) == 6
        first = seen.at[0]
        assert Owner().work(4) == 8
    assert Owner().work(5) == 10
    assert len(seen.seconds) == 2
    assert seen.since(first) == seen.seconds
    assert seen.since(seen.at[1]) == seen.seconds[1:]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"name": "knn", "figures": {}}', "figures of knn, not of ralm"),
        ('{"name": "ralm"}', "holds no figures of ralm: KeyError"),
        ("{", "holds no figures of ralm: JSONDecodeError"),
    ],
)
def test_figures_of_another_benchmark_are_not_gone_on_with(tmp_path, text, said):
    path = tmp_path / "figures.json"
    assert Result("ralm", path).earlier() is None
    path.write_text(text)
    with pytest.raises(EvalError, match=said):
        Result("ralm", path).earlier()
    save_result("ralm", {"rows": [1]}, "folio", path)
    assert Result("ralm", path).earlier() == {"rows": [1]}


def test_a_command_is_told_without_folders_of_this_machine(monkeypatch, tmp_path):
    book = str(tmp_path / "a book.txt")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "folio"), "bench", "x", "--text", book, "--length", "4", "../up"])
    assert command_line() == "folio bench x --text 'a book.txt' --length 4 ../up"
    assert BenchOptions().told() == {}
    assert Reading(model=book, windows=3).told("model", "windows") == {"model": "a book.txt", "windows": 3}
