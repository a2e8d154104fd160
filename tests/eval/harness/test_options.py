"""Options of a run: flags over YAML over defaults, checked before anything is loaded."""

from dataclasses import fields
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from eval.cli import app
from eval.errors import EvalError
from eval.harness.options import RunOptions
from eval.harness.plan import build_plan

NEEDED = {"tasks": "passkey", "output": Path("out")}


def test_flags_override_the_file_which_overrides_the_defaults(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("tasks: [passkey, vt]\nlength: [1K, 4096]\nengine: dense\nseed: 7\nkv-memory-mb: 512\n")
    options = RunOptions.load(config, {"output": tmp_path, "seed": 9, "engine": ["auto", "fusion"], "limit": None})
    assert options.tasks == ("passkey", "vt")
    assert options.length == (1024, 4096)
    assert options.engine == ("auto", "fusion")
    assert (options.seed, options.kv_memory_mb, options.limit, options.model) == (9, 512, (), ("embedded",))


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


def test_tasks_or_a_suite_are_needed():
    with pytest.raises(EvalError, match="no tasks"):
        RunOptions.load(None, {"output": Path("out")})
    assert RunOptions.load(None, {"suite": "ruler,babilong"}).suite == ("ruler", "babilong")


def test_results_go_to_a_folder_of_the_model_unless_another_is_named(tmp_path):
    file = tmp_path / "qwen.gguf"
    assert RunOptions.load(None, {"suite": "ruler", "model": str(file)}).folder == Path("results/qwen")
    assert RunOptions.load(None, {"suite": "ruler", "model": "Qwen/Qwen3-4B"}).folder == Path("results/Qwen3-4B")
    assert RunOptions.load(None, {**NEEDED, "model": str(file)}).folder == Path("out")


def test_several_models_have_a_folder_each():
    asked = RunOptions.load(None, {**NEEDED, "model": ["embedded", "models/qwen.gguf"]})
    assert [(one.checkpoint, one.folder) for one in asked.of_each_model()] == [
        ("embedded", Path("out/embedded")),
        ("models/qwen.gguf", Path("out/qwen")),
    ]
    assert [one.folder for one in RunOptions.load(None, NEEDED).of_each_model()] == [Path("out")]
    with pytest.raises(EvalError, match="two models are called 'model'"):
        RunOptions.load(None, {**NEEDED, "model": ["a/model", "b/model"]}).of_each_model()


def test_a_limit_is_one_for_all_lengths_or_one_for_each():
    each = RunOptions.load(None, {**NEEDED, "length": "4K,32K", "limit": "20,10"})
    assert [each.limit_at(length) for length in each.length] == [20, 10]
    assert RunOptions.load(None, {**NEEDED, "length": "4K,32K", "limit": 7}).limit_at(32768) == 7
    assert RunOptions.load(None, NEEDED).limit_at(None) is None
    with pytest.raises(EvalError, match="2 limits for 3 lengths"):
        RunOptions.load(None, {**NEEDED, "length": "1K,4K,32K", "limit": "20,10"})
    with pytest.raises(EvalError, match="limit"):
        RunOptions.load(None, {**NEEDED, "limit": "0"})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(EvalError, match=r"none\.yaml"):
        RunOptions.load(tmp_path / "none.yaml", NEEDED)


def test_engines_that_are_asked_alike_share_a_prompter():
    named = [f"openai:http://localhost:{port}/v1:m" for port in (1, 2)]
    options = RunOptions.load(None, {**NEEDED, "engine": named})
    (_, first), (_, second) = build_plan(options, "").engines
    assert first is second


def test_every_field_is_a_flag_of_the_command_and_a_key_of_the_file(tmp_path):
    flags = {name for option in get_command(app).commands["run"].params for name in option.opts}
    named = {f"--{field.name.replace('_', '-')}" for field in fields(RunOptions)}
    assert flags == named | {"--config", "--json"}
    (tmp_path / "run.yaml").write_text("".join(f"{name.removeprefix('--')}: '64'\n" for name in named))
    options = RunOptions.load(tmp_path / "run.yaml", {})
    assert (options.tasks, options.length, options.together, options.new_tokens) == (("64",), (64,), True, 64)


def test_a_flag_that_is_given_reaches_the_run(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("eval.harness.plan.build_plan", lambda options, command: seen.append(options) or 1 / 0)
    arguments = ["run", "--tasks", "passkey,vt", "--length", "2K,64", "--engine", "auto", "--engine", "dense"]
    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(app, [*arguments, "--output", str(tmp_path), "--together"], catch_exceptions=False)
    [options] = seen
    assert (options.tasks, options.length, options.engine) == (("passkey", "vt"), (2048, 64), ("auto", "dense"))
    assert (options.together, options.seed, options.output) == (True, 0, tmp_path)
