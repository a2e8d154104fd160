"""`folio eval qa` from the command to the report: the control, the embedded reader, a kill and going on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eval.cli import app
from eval.errors import EvalError
from eval.options import read
from eval.qa.control import Control
from eval.qa.options import QaOptions
from eval.qa.replies import Reply

RUNNER = CliRunner()


def folio_eval(*arguments: object):
    return RUNNER.invoke(app, ["qa", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture(scope="module")
def ran(squad_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A run of the control: its folder, the file of figures, what was printed."""
    folder = tmp_path_factory.mktemp("qa")
    told = folder / "figures.json"
    result = folio_eval("--data", squad_file, "--model", "control", "--output", folder, "--json", told)
    assert result.exit_code == 0, result.output
    return folder, told, result.output


def test_the_control_prints_the_sentence_that_answers(ran):
    _, told, printed = ran
    figures = json.loads(told.read_text())["figures"]
    closed, opened = figures["answers"]
    assert (closed["mode"], opened["mode"], closed["n"], closed["answerable"]) == ("closed", "open", 5, 4)
    for cell in (closed, opened):
        assert cell["sentence_hit"]["score"] == 100
        assert cell["best_of_3"]["n"] == 4
        assert (cell["honest"]["score"], cell["misled"]["score"]) == (0, 100)
        assert (cell["loop"]["score"], cell["failed"]) == (0, 0)
    assert {row["method"] for row in figures["retrieval"]} >= {"sparse", "dense", "hybrid", "bm25s, naive chunks"}
    assert "hit@1" in printed
    assert "citation_precision" in printed


def test_search_alone_over_one_half(squad_file, tmp_path):
    told = tmp_path / "figures.json"
    result = folio_eval("--data", squad_file, "--half", "second", "--no-answers", "--output", tmp_path, "--json", told)
    assert result.exit_code == 0, result.output
    figures = json.loads(told.read_text())["figures"]
    assert figures["answers"] == []
    assert {row["method"] for row in figures["retrieval"]} >= {"hybrid", "hybrid+rerank", "bm25s, naive chunks"}
    assert all((row["half"], row["n"]) == ("second", 2) for row in figures["retrieval"])
    assert not list(tmp_path.glob("rows_*"))


def test_the_report_has_tables_and_pictures(ran):
    folder, _, _ = ran
    text = (folder / "report.md").read_text()
    assert "## Search: island.en" in text
    assert "| right | " in text
    assert (folder / "search_island.en.png").stat().st_size > 5000
    assert (folder / "answers_island.en.png").stat().st_size > 5000
    assert "data:image/png;base64," in (folder / "report.html").read_text()


def test_rows_are_not_mixed_nor_thrown_away(ran, squad_file):
    folder, _, _ = ran
    with pytest.raises(EvalError, match="holds an earlier run's answers"):
        folio_eval("--data", squad_file, "--model", "control", "--output", folder)
    with pytest.raises(EvalError, match="made with other arguments"):
        folio_eval("--data", squad_file, "--model", "control", "--output", folder, "--resume", "--seed", 1)


def test_a_run_that_was_killed_goes_on_where_it_stopped(ran, squad_file, monkeypatch):
    folder, told, _ = ran
    rows = folder / "rows_island.en_control_open.jsonl"
    whole = rows.read_text().splitlines(keepends=True)
    before = json.loads(told.read_text())["figures"]["answers"]
    rows.write_text("".join(whole[:2]) + whole[2][:20])  # a kill in the middle of a row
    asked = []
    answers = Control.answers

    def watched(self, items, mode, corpus):
        asked.extend((item.id, mode) for item in items)
        return answers(self, items, mode, corpus)

    monkeypatch.setattr(Control, "answers", watched)
    again = folio_eval(
        *("--data", squad_file, "--model", "control", "--output", folder, "--resume", "--json", told, "--no-retrieval")
    )
    assert again.exit_code == 0
    assert asked == [(json.loads(line)["id"], "open") for line in whole[2:]]
    assert rows.read_text().splitlines(keepends=True) == whole
    assert json.loads(told.read_text())["figures"]["answers"] == before
    assert json.loads((folder / "results.json").read_text())["retrieval"]  # of the run before


def test_the_embedded_reader_answers_through_the_service(squad_file, tmp_path):
    told = tmp_path / "figures.json"
    result = folio_eval(
        *("--data", squad_file, "--output", tmp_path, "--json", told, "--mode", "open", "--no-retrieval"),
        *("--limit", 2, "--max-tokens", 24, "--clients", 2),
    )
    assert result.exit_code == 0
    (cell,) = json.loads(told.read_text())["figures"]["answers"]
    assert (cell["n"], cell["failed"], cell["model"]) == (2, 0, "embedded")
    rows = [Reply.of(json.loads(line)) for line in (tmp_path / "rows_island.en_embedded_open.jsonl").open()]
    assert all(row.answer and row.read and row.stats["output_tokens"] <= 24 for row in rows)
    assert cell["gold_in_evidence"]["score"] == 100


def test_bad_input_is_told_before_anything_heavy(squad_file, tmp_path, monkeypatch):
    monkeypatch.setattr("eval.qa.run.Corpus", None)  # not reached
    for arguments, said in [
        (["--data", tmp_path / "no.json"], "cannot read"),
        (["--data", squad_file, "--language", "xx"], "no rule to compare answers"),
        (["--data", squad_file, "--drafter", "nonsense"], "nonsense"),
        (["--data", squad_file, "--model", tmp_path / "no-model"], "no-model"),
    ]:
        with pytest.raises(Exception, match=said):
            folio_eval(*arguments, "--output", tmp_path / "out")


def test_an_option_of_several_words_is_one_of_them():
    assert read(QaOptions, {"data": "x.json", "mode": "open"}).modes == ("open",)
    with pytest.raises(EvalError, match="the option mode cannot be 'sideways'"):
        read(QaOptions, {"data": "x.json", "mode": "sideways"})


def test_a_reply_survives_its_row():
    reply = Reply("a", "x", "stop", (("d", 0, 3),), (("d", 0, 2),), {"output_tokens": 3})
    assert Reply.of(json.loads(json.dumps(reply.as_json()))) == reply


def test_the_control_without_passages_says_nothing(corpus, dataset, monkeypatch):
    monkeypatch.setattr("eval.qa.control.searched", lambda *_, **__: [[]])

    async def replies():
        return [reply async for reply in Control().answers(dataset.items[:1], "open", corpus)]

    (reply,) = asyncio.run(replies())
    assert (reply.answer, reply.ranked) == ("", ())
