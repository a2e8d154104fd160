"""Options of a run: flags over YAML over defaults, checked before anything is loaded."""

from pathlib import Path

import pytest

from eval.errors import EvalError
from eval.harness.configuration import RunOptions, build_plan

NEEDED = {"tasks": "passkey", "output": Path("out")}


def test_flags_override_the_file_which_overrides_the_defaults(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("tasks: [passkey, vt]\nlength: [1K, 4096]\nengine: dense\nseed: 7\nkv-memory-mb: 512\n")
    options = RunOptions.load(config, {"output": tmp_path, "seed": 9, "engine": ["auto", "fusion"], "limit": None})
    assert options.tasks == ("passkey", "vt")
    assert options.length == (1024, 4096)
    assert options.engine == ("auto", "fusion")
    assert (options.seed, options.kv_memory_mb, options.limit, options.model) == (9, 512, None, "embedded")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lenght: 4096", "unknown key 'lenght'"),
        ("length: four", "length"),
        ("length: 3", "length"),
        ("- a\n- b", "not a mapping"),
        ("a: [", "not YAML"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, said):
    config = tmp_path / "run.yaml"
    config.write_text(text)
    with pytest.raises(EvalError, match=said):
        RunOptions.load(config, NEEDED)


@pytest.mark.parametrize("missing", ["tasks", "output"])
def test_tasks_and_output_are_needed(missing):
    with pytest.raises(EvalError, match=missing):
        RunOptions.load(None, {key: value for key, value in NEEDED.items() if key != missing})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(EvalError, match=r"none\.yaml"):
        RunOptions.load(tmp_path / "none.yaml", NEEDED)


def test_engines_that_are_asked_alike_share_a_prompter():
    named = [f"openai:http://localhost:{port}/v1:m" for port in (1, 2)]
    options = RunOptions.load(None, {**NEEDED, "engine": named})
    (_, first), (_, second) = build_plan(options, "").engines
    assert first is second
