"""Runs: rows, resumption to the same bytes, failures as rows, full disks, wrong folders."""

import csv
import io
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval.errors import EvalError
from eval.harness import jsonl
from eval.harness.jsonl import JsonlAppender, read_jsonl
from eval.harness.options import RunOptions
from eval.harness.plan import Plan
from eval.harness.progress import TextProgress
from eval.harness.prompting import OfficialPrompter, OncePrompter
from eval.harness.report import report
from eval.harness.run import run
from eval.harness.store import load_summary
from eval.harness.summary import speeds
from eval.scoring import score_file
from eval.tasks.sources import sources


def plan(output, engines, tokenizer, *, prompter=None, data=None, **changes):
    tasks = changes.pop("tasks", ("passkey", "number_string"))
    limit = changes.pop("limit", 6)
    limits = limit if isinstance(limit, tuple) else (limit,)
    options = RunOptions(**{"length": (2048,), "limit": limits, "model": ("fake",), "output": output} | changes)
    prompter = prompter or OfficialPrompter(tokenizer, "yarn")
    found = sources(tasks, data=data, text=None, count=max(limits), seed=0)
    return Plan(options, [(engine, prompter) for engine in engines], found)


def files(folder: Path, *kinds: str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for k in kinds for p in sorted(folder.rglob(f"{k}_*.jsonl"))}


def test_rows_and_summary(tmp_path, tokenizer, fake_engine):
    summary = run(
        plan(tmp_path, [fake_engine(wrong_every=2)], tokenizer, length=(1024, 2048)), TextProgress(io.StringIO())
    )
    assert load_summary(tmp_path)["cells"] == summary["cells"]
    assert len(summary["cells"]) == 4
    path = tmp_path / "dense" / "preds_passkey-style_2048.jsonl"
    rows = [row for _, row in read_jsonl(path, [])]
    assert [list(row) for row in rows] == [["id", "prediction", "ground_truth"]] * 6
    cell = next(c for c in summary["cells"] if c["task"] == "passkey-style" and c["length"] == 2048)
    scored = score_file(path, "passkey-style", "official_v1")
    assert cell["scores"]["official_v1"]["score"] == pytest.approx(scored.score)
    assert 0 < scored.score < 100
    assert cell["groups"]["depth"].keys() == {"0.0", "0.25", "0.5", "0.75", "1.0"}
    assert cell["n"] == 6
    assert cell["failed"] == 0


def test_a_finished_run_answers_nothing_again(tmp_path, tokenizer, fake_engine):
    run(plan(tmp_path, [fake_engine()], tokenizer), TextProgress(io.StringIO()))
    before = files(tmp_path, "preds", "samples", "speed")
    again = fake_engine()
    run(plan(tmp_path, [again], tokenizer), TextProgress(io.StringIO()))
    assert again.asked == 0
    assert files(tmp_path, "preds", "samples", "speed") == before


def test_limit_may_grow(tmp_path, tokenizer, fake_engine):
    run(plan(tmp_path / "a", [fake_engine()], tokenizer, limit=3), TextProgress(io.StringIO()))
    run(plan(tmp_path / "a", [fake_engine()], tokenizer, limit=8), TextProgress(io.StringIO()))
    run(plan(tmp_path / "b", [fake_engine()], tokenizer, limit=8), TextProgress(io.StringIO()))
    assert files(tmp_path / "a", "preds", "samples") == files(tmp_path / "b", "preds", "samples")


def test_engines_asked_together_leave_the_same_files_in_another_order(tmp_path, tokenizer, fake_engine):
    asked = []

    class Noting(fake_engine):
        def answer(self, prompt, new_tokens):
            asked.append(self.name)
            return super().answer(prompt, new_tokens)

    def engines():
        return [Noting(name="dense"), Noting(name="fusion")]

    apart = run(plan(tmp_path / "apart", engines(), tokenizer, tasks=["passkey"], limit=3), TextProgress(io.StringIO()))
    assert asked == ["dense"] * 3 + ["fusion"] * 3
    asked.clear()
    made = plan(tmp_path / "together", engines(), tokenizer, tasks=["passkey"], limit=3, together=True)
    together = run(made, TextProgress(io.StringIO()))
    assert asked == ["dense", "fusion"] * 3
    assert files(tmp_path / "apart", "preds", "samples") == files(tmp_path / "together", "preds", "samples")
    assert [cell["engine"] for cell in together["cells"]] == [cell["engine"] for cell in apart["cells"]]


def test_engines_asked_together_read_one_prompt_made_once(tmp_path, tokenizer, fake_engine):
    made, read = [], []

    class Counting(OfficialPrompter):
        def build(self, example, limit):
            made.append(example.id)
            return super().build(example, limit)

    class Noting(fake_engine):
        def answer(self, prompt, new_tokens):
            read.append(prompt)
            return super().answer(prompt, new_tokens)

    prompter = OncePrompter(Counting(tokenizer, "yarn"))
    engines = [Noting(name="dense"), Noting(name="fusion")]
    both = plan(tmp_path, engines, tokenizer, tasks=["passkey"], limit=3, prompter=prompter, together=True)
    run(both, TextProgress(io.StringIO()))
    assert made == [0, 1, 2]
    assert all(first is second for first, second in zip(read[::2], read[1::2], strict=True))
    assert len({prompt.ids for prompt in read}) == 3
    example = next(both.sources[0].examples(prompter, 2048, []))
    assert len(prompter.build(example, 500).ids) <= 500 < len(prompter.build(example, 2000).ids)


def test_times_of_cached_prompts_are_told_apart():
    rows = [
        {"ttft_s": ttft, "total_s": ttft + 1, "harness_s": 0.0, "prompt_tokens": 80, "stats": {"cached_tokens": cached}}
        for ttft, cached in ((4.0, 0), (0.1, 64), (6.0, 0))
    ]
    assert speeds(rows)["ttft_s_median"] == 5.0
    assert speeds(rows)["total_s_median"] == 6.0
    assert speeds(rows)["ttft_s_cached_median"] == 0.1
    assert speeds(rows)["cached_share"] == pytest.approx(64 / 240)
    assert "cached_share" not in speeds(rows[::2])


@pytest.mark.parametrize("cut", [("preds", 1), ("samples", 40), ("speed", 300)])
def test_files_of_unequal_length_are_aligned_and_completed(tmp_path, tokenizer, fake_engine, cut):
    run(plan(tmp_path, [fake_engine()], tokenizer), TextProgress(io.StringIO()))
    whole = files(tmp_path, "preds", "samples")
    kind, lost = cut
    path = tmp_path / "dense" / f"{kind}_passkey-style_2048.jsonl"
    path.write_bytes(path.read_bytes()[:-lost])
    run(plan(tmp_path, [fake_engine()], tokenizer), TextProgress(io.StringIO()))
    assert files(tmp_path, "preds", "samples") == whole


def test_a_killed_run_resumes_to_identical_files(tmp_path, tokenizer, fake_engine):
    class Slow(fake_engine):
        def answer(self, prompt, new_tokens):
            time.sleep(0.1)
            return super().answer(prompt, new_tokens)

    run(plan(tmp_path / "whole", [fake_engine()], tokenizer, limit=12), TextProgress(io.StringIO()))
    child = multiprocessing.get_context("fork").Process(
        target=run, args=(plan(tmp_path / "killed", [Slow()], tokenizer, limit=12), TextProgress(io.StringIO()))
    )
    child.start()
    watched = tmp_path / "killed" / "dense" / "preds_passkey-style_2048.jsonl"
    while child.is_alive() and (not watched.exists() or watched.read_bytes().count(b"\n") < 3):
        time.sleep(0.01)
    child.kill()
    child.join()
    assert 3 <= watched.read_bytes().count(b"\n") < 12
    run(plan(tmp_path / "killed", [fake_engine()], tokenizer, limit=12), TextProgress(io.StringIO()))
    assert files(tmp_path / "killed", "preds", "samples") == files(tmp_path / "whole", "preds", "samples")


def test_official_prompts_too_long_lose_their_middle(tmp_path, tokenizer, fake_engine):
    rows = [
        {"id": i, "context": "x " * 3000 + "key is 12345" + " y" * 3000, "input": "?", "answer": "12345"}
        for i in (0, 1)
    ]
    (tmp_path / "passkey.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\ngi")
    made = plan(tmp_path / "out", [fake_engine()], tokenizer, tasks=["passkey"], data=str(tmp_path), length=(1000,))
    cell = run(made, TextProgress(io.StringIO()))["cells"][0]
    assert (cell["task"], cell["task_version"], cell["n"], cell["cut"], cell["failed"]) == (
        "passkey",
        "88b3daa",
        2,
        2,
        0,
    )
    assert [problem.line for problem in made.problems] == [3]
    assert (tmp_path / "out" / "dense" / "preds_passkey_1000.jsonl").exists()


class Breaking:
    """An engine whose third answer raises what no engine should."""

    name, window = "breaking", 100_000

    def __init__(self, inner):
        self._inner = inner

    def describe(self):
        return self._inner.describe()

    def answer(self, prompt, new_tokens):
        reply = self._inner.answer(prompt, new_tokens)
        if self._inner.asked == 3:
            raise RuntimeError("out of luck")
        return reply


def test_a_failed_example_is_a_row_and_stays_in_the_denominator(tmp_path, tokenizer, fake_engine):
    summary = run(
        plan(tmp_path, [Breaking(fake_engine())], tokenizer, tasks=["passkey"], limit=5), TextProgress(io.StringIO())
    )
    cell = summary["cells"][0]
    assert (cell["n"], cell["failed"]) == (5, 1)
    assert cell["scores"]["official_v1"]["score"] == pytest.approx(80)
    rows = [row for _, row in read_jsonl(tmp_path / "breaking" / "samples_passkey-style_2048.jsonl", [])]
    assert [row["error"] for row in rows] == [None, None, "RuntimeError: out of luck", None, None]


def test_a_full_disk_stops_the_run_and_costs_no_row(tmp_path, tokenizer, fake_engine, monkeypatch):
    whole = tmp_path / "whole"
    run(plan(whole, [fake_engine()], tokenizer), TextProgress(io.StringIO()))
    room, written = 6000, 0

    def short_write(descriptor, data):
        nonlocal written
        take = min(len(data), room - written)
        if take <= 0:
            raise OSError(28, "No space left on device")
        written += take
        return real_write(descriptor, data[:take])

    real_write = os.write
    full = tmp_path / "full"
    with monkeypatch.context() as patch:
        patch.setattr(jsonl.os, "write", short_write)
        with pytest.raises(EvalError, match="No space left") as error:
            run(plan(full, [fake_engine()], tokenizer), TextProgress(io.StringIO()))
    assert "run the same command again" in error.value.detail
    for path in full.rglob("*.jsonl"):
        assert path.read_bytes() == b"" or path.read_bytes().endswith(b"\n")
    assert any(path.stat().st_size for path in full.rglob("preds_*.jsonl"))
    run(plan(full, [fake_engine()], tokenizer), TextProgress(io.StringIO()))
    assert files(full, "preds", "samples") == files(whole, "preds", "samples")


def test_results_of_another_version_are_named(tmp_path, tokenizer, fake_engine):
    run(plan(tmp_path, [fake_engine()], tokenizer, limit=1), TextProgress(io.StringIO()))
    path = tmp_path / "results.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    again = fake_engine()
    for use in (
        lambda: run(plan(tmp_path, [again], tokenizer, limit=2), TextProgress(io.StringIO())),
        lambda: report(tmp_path),
    ):
        with pytest.raises(EvalError, match=r"results\.json is of format 2, and this Folio reads 1"):
            use()
    assert again.asked == 0


def test_rows_of_other_arguments_are_not_mixed(tmp_path, tokenizer, fake_engine):
    run(plan(tmp_path, [fake_engine()], tokenizer), TextProgress(io.StringIO()))
    with pytest.raises(EvalError, match="seed=0, not 1"):
        run(plan(tmp_path, [fake_engine()], tokenizer, seed=1), TextProgress(io.StringIO()))


def test_data_that_changed_under_a_run_is_noticed(tmp_path, tokenizer, fake_engine):
    row = {"context": "key is 12345", "input": "?", "answer": "12345"}
    data = tmp_path / "passkey.jsonl"
    data.write_text("".join(json.dumps({"id": i, **row}) + "\n" for i in (0, 1)))
    run(
        plan(tmp_path / "out", [fake_engine()], tokenizer, tasks=["passkey"], data=str(tmp_path)),
        TextProgress(io.StringIO()),
    )
    data.write_text("".join(json.dumps({"id": i, **row}) + "\n" for i in (5, 6)))
    with pytest.raises(EvalError, match="example 0"):
        run(
            plan(tmp_path / "out", [fake_engine()], tokenizer, tasks=["passkey"], data=str(tmp_path)),
            TextProgress(io.StringIO()),
        )


def test_progress_tells_score_and_time_left(capsys):
    from eval.harness.store import Cell

    shown = TextProgress(sys.stderr).begin(Cell("dense", "passkey-style", 4096), 4, [1.0])
    shown.row(0.0)
    assert "dense passkey-style 4096: 2/4, score 50.00" in shown.line()
    assert "s left" in shown.line()
    shown.end()
    assert "2/4" in capsys.readouterr().err


def test_appender_cuts_a_partial_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": 0}\n{"id": 1, "pre')
    with JsonlAppender(path) as rows:
        rows.append({"id": 1})
    assert path.read_bytes() == b'{"id": 0}\n{"id": 1}\n'


def test_a_hundred_megabytes_stream_in_little_memory(tmp_path):
    path = tmp_path / "preds_passkey.jsonl"
    line = (
        json.dumps({"id": 0, "prediction": "The pass key is 12345. " + "x" * 100_000, "ground_truth": "12345"}) + "\n"
    )
    with path.open("w") as file:
        for _ in range(1050):
            file.write(line)
    code = (
        "import sys\nfrom pathlib import Path\nfrom eval.scoring import score_file\n"
        "assert score_file(Path(sys.argv[1]), 'passkey', 'official_v1').score == 100\n"
        "print(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert path.stat().st_size > 100e6
    assert int(done.stdout) * 1024 < 300e6


def test_each_length_has_its_limit_and_who_does_not_hold_it_is_not_asked(tmp_path, tokenizer, fake_engine):
    small = fake_engine(name="small", window=1024)
    made = plan(tmp_path, [fake_engine(), small], tokenizer, tasks=["passkey"], length=(1024, 2048), limit=(4, 2))
    cells = run(made, TextProgress(io.StringIO()))["cells"]
    assert [(cell["engine"], cell["length"], cell["n"]) for cell in cells] == [
        ("dense", 1024, 4),
        ("small", 1024, 4),
        ("dense", 2048, 2),
    ]
    assert made.left_out == {"small at 2048": "of 1024 tokens at most"}
    none = plan(tmp_path / "none", [small], tokenizer, length=(2048, 4096))
    assert run(none, TextProgress(io.StringIO()))["cells"] == []


def test_several_models_are_reported_side_by_side(tmp_path, tokenizer, fake_engine):
    for model, wrong in (("one", 0), ("two", 2)):
        made = plan(tmp_path / model, [fake_engine(wrong_every=wrong)], tokenizer, tasks=["passkey"])
        run(made, TextProgress(io.StringIO()))
    report(tmp_path)
    rows = list(csv.DictReader((tmp_path / "report.csv").open()))
    assert [row["engine"] for row in rows] == ["one: dense", "two: dense"]
    assert float(rows[0]["official_v1"]) == 100 > float(rows[1]["official_v1"])
    (tmp_path / "two" / "results.json").unlink()
    report(tmp_path)
    assert "two: dense" not in (tmp_path / "report.md").read_text()
    with pytest.raises(EvalError, match=r"results\.json"):
        report(tmp_path / "two")
