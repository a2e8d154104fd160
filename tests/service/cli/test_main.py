"""The command line: exact JSON, exit codes, and one clear sentence for everything that goes wrong."""

from __future__ import annotations

import inspect
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from service.cli import main as main_module
from service.cli import output
from service.cli.main import app, load_plugins

Folio = Callable[..., tuple[int, str, str]]


@pytest.fixture
def at(folio: Folio, home: Path) -> Folio:
    """Run a command on a copy of the library with two documents."""
    return lambda *arguments: folio("--home", home, *arguments)


def json_of(result: tuple[int, str, str]) -> Any:
    code, out, err = result
    assert code == 0, err
    return json.loads(out)


def ids(at: Folio) -> dict[str, str]:
    return {d["name"]: d["id"] for d in json_of(at("docs", "ls", "--json"))["documents"]}


def test_ingest_reports_every_file(folio: Folio, tmp_path: Path, files: list[Path]) -> None:
    home = ("--home", tmp_path / "new")
    found = json_of(folio(*home, "ingest", *files, "--json"))["documents"]
    assert [d["name"] for d in found] == ["bridge.txt", "trees.md"]
    assert {"id", "name", "status", "pages", "chunks", "error"} <= set(found[0])
    assert all(d["status"] == "ready" and d["chunks"] >= 1 and d["error"] is None for d in found)
    again = json_of(folio(*home, "ingest", *files, "--json"))["documents"]
    assert [d["id"] for d in again] == [d["id"] for d in found]


def test_ingest_partly_and_wholly_failed(folio: Folio, tmp_path: Path, files: list[Path]) -> None:
    home = ("--home", tmp_path / "new")
    empty = tmp_path / "empty.txt"
    empty.touch()
    code, out, _ = folio(*home, "ingest", files[0], empty, tmp_path / "nowhere.txt", "--json")
    assert code == 3
    statuses = [(d["name"], d["status"]) for d in json.loads(out)["documents"]]
    assert statuses == [("bridge.txt", "ready"), ("empty.txt", "failed"), ("nowhere.txt", "failed")]
    code, out, err = folio(*home, "ingest", tmp_path / "nowhere.txt")
    assert code == 1
    assert "nowhere.txt" in err


def test_dry_run_stores_nothing(folio: Folio, tmp_path: Path, files: list[Path]) -> None:
    planned = json_of(folio("--home", tmp_path / "new", "ingest", tmp_path, "--dry-run", "--json"))["documents"]
    assert {"bridge.txt", "trees.md"} <= {Path(d["name"]).name for d in planned}
    assert not (tmp_path / "new" / "folio.db").exists()


def test_show_text_is_the_files_own_text(tmp_path: Path, capfdbinary: Any) -> None:
    from service.cli.main import main

    odd = tmp_path / "odd.txt"
    content = "One\r\nTwo\ttabs [bold]x[/bold] — é\u2028\n\n last line without end".encode()
    odd.write_bytes(content)
    home = ["--home", str(tmp_path / "new")]
    assert main([*home, "ingest", str(odd), "--json"]) == 0
    document = json.loads(capfdbinary.readouterr().out)["documents"][0]["id"]
    assert main([*home, "docs", "show", document, "--text"]) == 0
    assert capfdbinary.readouterr().out == content
    assert main([*home, "docs", "show", document, "--text", "--start", "0", "--end", "3"]) == 0
    assert capfdbinary.readouterr().out == b"One"


def test_docs_show_and_rm(at: Folio) -> None:
    document = ids(at)["trees.md"]
    shown = json_of(at("docs", "show", document, "--json"))
    assert (shown["name"], shown["status"]) == ("trees.md", "ready")
    code, _, err = at("docs", "rm", document)
    assert (code, "--yes" in err) == (2, True)
    assert json_of(at("docs", "rm", document, "--yes", "--json"))["removed"] == [document]
    assert at("docs", "show", document)[0] == 1
    code, out, _ = at("docs", "rm", document, "--yes", "--json")
    assert (code, json.loads(out)["missing"]) == (1, [document])
    assert all(hit["document"] != document for hit in json_of(at("search", "oak", "--json"))["results"])


def test_search_has_exactly_the_keys(at: Folio) -> None:
    found = json_of(at("search", "who built the bridge", "--json", "-k", 2))
    assert set(found) == {"results", "generation", "note"}
    hit = found["results"][0]
    assert set(hit) == {"chunk_id", "document", "name", "start", "end", "page", "place", "context", "score", "text"}
    assert hit["name"] == "bridge.txt"


def test_search_shows_headings_and_says_what_it_could_not_do(at: Folio, tmp_path: Path) -> None:
    (tmp_path / "fees.md").write_text(
        "# Fees\n\n## Harbour\n\nA berth costs twelve crowns.\n\n## Quay\n\nFree of charge.\n"
    )
    assert at("ingest", tmp_path / "fees.md")[0] == 0
    code, out, err = at("search", "what does a berth cost")
    assert (code, err) == (0, "")
    assert "A berth costs twelve crowns." in out
    code, out, err = at("search", "𓀀𓂀")
    assert code == 0
    assert "The embedding model knows none of these words" in err


def test_documents_are_shown_by_name_with_their_notes(at: Folio, tmp_path: Path) -> None:
    letter = tmp_path / "letters" / f"{'long-' * 20}letter.txt"
    letter.parent.mkdir()
    letter.write_bytes("The gate isn’t open; it cost £5.".encode("cp1252"))
    said = "decoded as cp1252 with 0 doubtful bytes"
    code, out, err = at("ingest", letter.parent)
    assert (code, said in err) == (0, True)
    assert f"letters/{letter.name}" in out  # not cut: this is no terminal
    assert json_of(at("docs", "show", letter.name, "--json"))["notes"] == [said]
    assert said in at("docs", "show", f"letters/{letter.name}")[1]
    assert at("docs", "show", letter.name, "--text")[1] == "The gate isn’t open; it cost £5."
    assert json_of(at("search", "gate", "-d", letter.name, "--json"))["results"][0]["name"] == f"letters/{letter.name}"


def test_an_error_is_told_once(folio: Folio, tmp_path: Path) -> None:
    _, out, err = folio("--home", tmp_path / "new", "ingest", tmp_path / "nowhere.txt")
    assert (out + err).count("no such file") == 1


def test_progress_is_told_in_lines_where_there_is_no_terminal(monkeypatch: Any, capsys: Any) -> None:
    from retrieval.types import Progress
    from service.cli import documents

    show = documents._ProgressLines()
    show(Progress("book.pdf", "parse", 1, 9))
    monkeypatch.setattr(documents, "LINE_S", 0.0)
    show(Progress("book.pdf", "parse", 2, 9))
    assert capsys.readouterr().err.splitlines() == ["book.pdf: parse 2 of 9"]


def test_index_commands(at: Folio, home: Path) -> None:
    assert json_of(at("index", "build", "--json"))["chunks"] == 2
    assert json_of(at("index", "verify", "--json"))["ok"] is True
    stats = json_of(at("index", "stats", "--json"))
    assert (stats["documents"], stats["chunks"]) == (2, 2)
    assert json_of(at("index", "compact", "--json"))["chunks"] == 2
    newest = max((f for f in (home / "index").iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime_ns)
    victim = max((f for f in newest.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(bytes(data))
    code, out, err = at("index", "verify", "--json")
    assert code == 4
    found = json.loads(out)
    assert victim.name in str(found["problems"] + found["mended"])
    assert victim.name in err
    assert json_of(at("index", "rebuild", "--json"))["chunks"] == 2
    assert at("index", "verify")[0] == 0


def test_ask_has_exactly_the_keys(at: Folio, tiny_model: Path) -> None:
    document = ids(at)["bridge.txt"]
    ask = ("ask", "Who built the bridge?", "--model", tiny_model, "--max-tokens", 4, "--json")
    answer = json_of(at(*ask, "--document", document))
    assert {"answer", "mode", "mode_reason", "citations", "stats"} <= set(answer)
    assert answer["mode"] == "long"
    wanted = {"prompt_tokens", "output_tokens", "ttft_s", "decode_tokens_per_s", "retrieval_ms"}
    assert wanted <= set(answer["stats"])
    code, _, err = at(*ask, "--mode", "magic")
    assert (code, "magic" in err) == (2, True)
    assert at(*ask, "--document", "nosuch")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--mode", "nosuch"), 2, "--mode must be 'auto'"),
        (("--document", "nosuch"), 1, "nosuch"),
        (("--collection", "nosuch"), 1, "no collection 'nosuch'"),
        (("--drafter", "nosuch"), 2, "unknown drafter 'nosuch'"),
        (("--drafter", "suffix:colour=red"), 2, "colour"),
        (("--attention", "nosuch"), 2, "nosuch"),
        (("--attention", "quest:budget=1"), 2, "budget=1"),
        (("--temperature", "9"), 2, "--temperature must be at most 2, not 9"),
        (("--model", "no/such/folder/here"), 1, "no/such/folder/here"),
    ],
)
def test_ask_refuses_an_option_in_one_sentence_before_a_model_is_loaded(
    at: Folio, tiny_model: Path, arguments: tuple[str, ...], code: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a line of the log before it, which would say it again or blame the model."""
    if "--model" not in arguments:  # which cannot be known to be wrong before it is looked for
        monkeypatch.setattr("service.runtime.load_engine", None)
    model = () if "--model" in arguments else ("--model", tiny_model)
    found, out, err = at("ask", "Who built the bridge?", *model, *arguments)
    assert (found, out) == (code, ""), err
    (line,) = err.strip().splitlines()
    assert line.startswith("folio: ")
    assert says in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--attention", "nosuch"), "unknown attention policy 'nosuch'"),
        (("--drafter", "nosuch"), "unknown drafter 'nosuch'"),
        (("--model", "no/such/folder"), "no/such/folder"),
    ],
)
def test_serve_refuses_an_option_once_and_before_it_listens(
    at: Folio, arguments: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.server.run_server", None)
    code, _, err = at("serve", *arguments)
    assert code in (1, 2)
    (line,) = err.strip().splitlines()
    assert says in line


def test_what_is_slow_is_told_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "LINE_S", 0.01)
    with output.working("Loading x …"):
        time.sleep(0.2)
    with output.working("Loading y …"):
        pass
    assert capsys.readouterr().err == "Loading x …\n"


def test_what_the_hub_says_is_said_once(
    folio: Folio, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = logging.getLogger("huggingface_hub")
    hub.addHandler(logging.StreamHandler())  # as it does when it is imported
    (tmp_path / "ids.json").write_text("[1, 2]")
    how = ("--model", tiny_model, "--max-new", 1, "--prompt-ids", tmp_path / "ids.json")
    assert folio("--home", tmp_path, "generate", *how)[0] == 0
    hub.getChild("utils").warning("Retrying in 1s")
    assert capsys.readouterr().err.count("Retrying in 1s") == 1


def test_generate_keeps_to_a_schema(folio: Folio, tiny_model: Path, tmp_path: Path) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    (tmp_path / "prompt.txt").write_text("The bridge at Hampton")
    how = ("generate", "--model", tiny_model, "--prompt-file", tmp_path / "prompt.txt", "--json")
    found = json_of(folio("--home", tmp_path, *how, "--json-schema", tmp_path / "schema.json"))
    assert [type(value) for value in json.loads(found["text"])] == [bool, bool]
    code, _, said = folio("--home", tmp_path, *how, "--json-schema", tmp_path / "nosuch.json")
    assert (code, "nosuch.json cannot be read" in said) == (2, True)


def test_generate_equals_transformers(folio: Folio, tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompt = tmp_path / "prompt.txt"
    prompt.write_text("The bridge at Hampton")
    how = ("generate", "--model", tiny_model, "--max-new", 12, "--dtype", "float64", "--json")
    found = json_of(folio("--home", tmp_path, *how, "--prompt-file", prompt))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    ids = tokenizer("The bridge at Hampton", return_tensors="pt").input_ids
    expected = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    eos = tokenizer.eos_token_id
    assert [t for t in found["token_ids"] if t != eos] == [t for t in expected if t != eos]
    assert set(found) >= {"token_ids", "text", "stats"}
    listed = tmp_path / "ids.json"
    listed.write_text(json.dumps(ids[0].tolist()))
    assert json_of(folio("--home", tmp_path, *how, "--prompt-ids", listed))["token_ids"] == found["token_ids"]
    assert json_of(folio("--home", tmp_path, *how, "--prompt", "The bridge at Hampton")) | {"stats": 0} == found | {
        "stats": 0
    }


def test_generate_samples_as_the_model_s_makers_do(folio: Folio, tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    said = {"do_sample": True, "temperature": 1.5, "top_k": 40, "repetition_penalty": 1.2}
    (model / "generation_config.json").write_text(json.dumps(said))
    how = ("generate", "--model", model, "--max-new", 12, "--json", "--prompt", "The bridge at Hampton", "--seed", 3)
    found, plain = (json_of(folio("--home", tmp_path, *how, *more)) for more in ((), ("--temperature", 0)))
    theirs = {"temperature": 1.5, "top_p": 1.0, "top_k": 40, "min_p": 0.0, "repetition_penalty": 1.2}
    assert found["stats"]["sampling"] == theirs | {"from_model": ["temperature", "top_k", "repetition_penalty"]}
    assert plain["stats"]["sampling"]["from_model"] == []
    assert found["token_ids"] != plain["token_ids"]
    greedy = json_of(folio("--home", tmp_path, *how[:1], "--model", tiny_model, *how[3:]))
    assert plain["token_ids"] == greedy["token_ids"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "one of --prompt, --prompt-file and --prompt-ids"),
        (("--prompt", "x", "--prompt-ids", "GOOD"), 2, "one of --prompt, --prompt-file and --prompt-ids"),
        (("--prompt", "x\udcff"), 2, "half of a surrogate pair"),
        (("--prompt-file", "/no/such/file"), 2, "/no/such/file"),
        (("--prompt-ids", "BAD"), 2, "not JSON"),
        (("--prompt-ids", "TEXT"), 2, "list of token ids"),
        (("--prompt-ids", "HUGE"), 2, "token id 1000000"),
        (("--prompt-ids", "EMPTY"), 2, "empty"),
        (("--prompt-ids", "LONG"), 1, "9000"),
        (("--prompt-ids", "GOOD", "--drafter", "nosuch"), 2, "nosuch"),
        (("--prompt-ids", "GOOD", "--dtype", "int3"), 2, "dtype"),
        (("--prompt-ids", "GOOD", "--max-new", "0"), 2, "max_tokens"),
        (("--prompt-ids", "GOOD", "--model", "no/such/folder/here"), 1, "no/such/folder/here"),
    ],
)
def test_generate_refuses_in_words(
    folio: Folio, tiny_model: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    contents = {"BAD": "{", "TEXT": '["a"]', "HUGE": "[1000000]", "EMPTY": "[]", "GOOD": "[1, 2]"}
    for name, content in {**contents, "LONG": json.dumps([1] * 9000)}.items():
        (tmp_path / name).write_text(content)
    paths = [str(tmp_path / a) if (tmp_path / a).is_file() else a for a in arguments]
    model = () if "--model" in paths else ("--model", tiny_model)
    found, _, err = folio("--home", tmp_path, "generate", *model, *paths)
    assert found == code, err
    assert says in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--drafter", "nosuch"), "unknown drafter 'nosuch'"),
        (("--attention", "quest:budget=1"), "budget=1"),
        (("--regex", "("), "The regex of the output cannot be used"),
    ],
)
def test_generate_refuses_before_the_model_is_loaded(
    folio: Folio, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, says: str
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("service.engine.engine.load_model", load)
    (tmp_path / "prompt.txt").write_text("x")
    how = ("generate", "--model", tiny_model, "--prompt-file", tmp_path / "prompt.txt")
    code, out, err = folio("--home", tmp_path, *how, *arguments)
    assert (code, out) == (2, "")
    assert says in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nosuch",), "nosuch"),
        (("search",), "query"),
        (("search", "x", "--mode", "magic"), "magic"),
        (("ingest",), "PATH"),
    ],
)
def test_usage_errors(at: Folio, arguments: tuple[str, ...], says: str) -> None:
    code, _, err = at(*arguments)
    assert code == 2
    assert says in err


def test_an_unknown_document_and_an_empty_query(at: Folio) -> None:
    assert at("docs", "show", "nosuch")[0] == 1
    code, _, err = at("search", " ")
    assert (code, "empty" in err) == (2, True)


def test_a_database_that_cannot_be_opened(folio: Folio, tmp_path: Path) -> None:
    code, _, err = folio("--home", tmp_path / "h", "--database-url", "sqlite:////no/such/dir/x.db", "docs", "ls")
    assert code == 1
    assert "/no/such/dir" in err
    blocker = tmp_path / "file"
    blocker.touch()
    code, _, err = folio("--home", blocker / "home", "docs", "ls")
    assert (code, str(blocker) in err) == (1, True)


def test_keys(at: Folio) -> None:
    made = json_of(at("keys", "create", "laptop", "--scope", "read", "--json"))
    assert made["key"].startswith("folio_")
    listed = json_of(at("keys", "list", "--json"))["keys"]
    assert [(k["id"], k["state"]) for k in listed] == [(made["id"], "active")]
    assert "key" not in listed[0]
    assert json_of(at("keys", "revoke", made["id"], "--json"))["state"] == "revoked"
    assert at("keys", "revoke", "nosuch")[0] == 1
    assert at("keys", "create", "--scope", "king")[0] == 2


def test_the_audit_log(at: Folio) -> None:
    code, out, _ = at("keys", "create", "visitor", "--owner", "ann", "--json")
    assert code == 0
    key = json.loads(out)["id"]
    code, out, _ = at("keys", "audit", "--json")
    [entry] = json.loads(out)["audit"]
    assert (code, entry["action"], entry["owner"], entry["subject"]) == (0, "key.create", "ann", key)
    assert "key.create" in at("keys", "audit")[1]


def test_a_collection_goes_out_and_in(at: Folio, folio: Folio, tmp_path: Path) -> None:
    archive = tmp_path / "default.zip"
    assert json.loads(at("collections", "export", "default", archive, "--json")[1])["documents"] == 2
    code, _, err = at("collections", "export", "default", archive)
    assert (code, "there already" in err) == (2, True)
    home = tmp_path / "other"
    code, out, _ = folio("--home", home, "collections", "import", archive, "-c", "copy", "--json")
    assert code == 0
    assert {document["name"] for document in json.loads(out)["documents"]} == {"bridge.txt", "trees.md"}
    listed = json.loads(folio("--home", home, "collections", "ls", "--json")[1])
    assert listed == {"collections": [{"name": "copy", "documents": 2}]}
    code, _, err = folio("--home", home, "collections", "import", tmp_path / "none.zip")
    assert (code, "not an archive" in err) == (2, True)


def test_doctor(at: Folio, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("FOLIO_MODEL", str(tiny_model))
    monkeypatch.setenv("FOLIO_PROT", "1")
    findings = json_of(at("doctor", "--json"))["findings"]
    assert any("FOLIO_PROT" in finding["detail"] for finding in findings)
    assert not [finding for finding in findings if finding["state"] == "bad"]
    monkeypatch.setenv("FOLIO_MODEL", str(home))
    code, out, _ = at("doctor", "--json")
    assert code == 1
    assert [f["subject"] for f in json.loads(out)["findings"] if f["state"] == "bad"] == ["model"]


def test_a_broken_plugin_costs_only_itself() -> None:
    def broken() -> Any:
        raise ImportError("no such thing")

    points = [
        SimpleNamespace(name="bad", value="x:y", load=broken),
        SimpleNamespace(name="wrong", value="x:z", load=lambda: 5),
        SimpleNamespace(name="good", value="x:a", load=lambda: typer.Typer()),
    ]
    target = typer.Typer()
    problems = load_plugins(target, points)
    assert len(problems) == 2
    assert "'bad'" in problems[0]
    assert [group.name for group in target.registered_groups] == ["good"]


def test_plugins_are_loaded_for_their_own_commands_alone(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    loaded: list[object] = []
    monkeypatch.setattr(main_module, "load_plugins", lambda target: loaded.append(target) or [])
    flags = [f"--{name.replace('_', '-')}" for name in inspect.signature(main_module.global_flags).parameters]
    assert set(flags) - {"--context", "---version"} == set(main_module.VALUED)
    for flag in main_module.VALUED:
        main_module.main([flag, "x", "docs", "--help"])
    assert not loaded
    main_module.main(["--home", "docs", "nosuch"])
    assert loaded


def test_help_is_quick_and_complete() -> None:
    """No heavy package is imported for help or for a list of documents."""
    program = (
        "import sys, service.cli.main; print(sorted({'torch','transformers','fastapi','faiss'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
    names = {command.name for command in app.registered_commands} | {g.name for g in app.registered_groups}
    assert {"ingest", "docs", "index", "search", "ask", "generate", "serve", "doctor", "keys"} <= names


def test_an_interrupted_ingest_keeps_what_was_finished(tmp_path: Path, folio: Folio) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(400):
        (folder / f"{i:04}.txt").write_text(f"Document {i} speaks of the number {i} and of nothing else. " * 40)
    command = [sys.executable, "-m", "service.cli", "--home", str(tmp_path / "home"), "ingest", str(folder)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ)
    database = tmp_path / "home" / "folio.db"
    for _ in range(1200):
        if database.exists() and _stored(database) >= 3:
            break
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "interrupted" in err
    stored = json_of(folio("--home", tmp_path / "home", "docs", "ls", "--json"))["documents"]
    assert 3 <= len(stored) < 400
    assert all(document["status"] == "ready" for document in stored)
    assert folio("--home", tmp_path / "home", "index", "verify")[0] == 0


def _stored(database: Path) -> int:
    import sqlite3

    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            return int(connection.execute("select count(*) from documents").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
