"""Flags override the environment, which overrides the file; what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.engine.config import EngineConfig
from service.errors import InvalidRequest
from service.settings import Settings, load_settings, stray_variables


def test_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folio.toml").write_text("port = 1111\nmodel = 'from-file'\npassages = 3\n")
    monkeypatch.setenv("FOLIO_HOME", str(tmp_path))
    monkeypatch.setenv("FOLIO_PORT", "2222")
    monkeypatch.setenv("FOLIO_MODEL", "from-environment")
    settings = load_settings(port=3333, model=None)
    assert (settings.port, settings.model, settings.passages) == (3333, "from-environment", 3)


def test_a_named_file_is_used_and_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.toml"
    monkeypatch.setenv("FOLIO_CONFIG", str(file))
    with pytest.raises(InvalidRequest, match="FOLIO_CONFIG"):
        load_settings()
    file.write_text("port = 4444\n")
    assert load_settings().port == 4444


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("porrt = 1\n", "no setting 'porrt'"),
        ("port = 'x'\n", "'port' = 'x' is not valid"),
        ("port = \n", "cannot be read"),
        ("port = 70000\n", "less than or equal to 65535"),
    ],
)
def test_a_bad_file_is_refused_in_words(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "folio.toml").write_text(content)
    with pytest.raises(InvalidRequest, match=message):
        load_settings(home=tmp_path)


def test_a_secret_is_not_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "folio.toml").write_text("api_key = 123456\n")
    with pytest.raises(InvalidRequest) as caught:
        load_settings(home=tmp_path)
    assert "123456" not in caught.value.message
    monkeypatch.setenv("FOLIO_API_KEY", "hush")
    (tmp_path / "folio.toml").unlink()
    assert "hush" not in repr(load_settings(home=tmp_path))


def test_the_engines_options_are_settings_of_the_same_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folio.toml").write_text("step_tokens = 512\nqueue_limit = 3\n")
    monkeypatch.setenv("FOLIO_HOME", str(tmp_path))
    monkeypatch.setenv("FOLIO_KV_MEMORY", "3MiB")
    monkeypatch.setenv("FOLIO_QUEUE_LIMIT", "4")
    engine = load_settings(max_running=5, kv_dtype="int8").engine
    assert type(engine) is EngineConfig
    assert (engine.step_tokens, engine.kv_memory, engine.queue_limit, engine.max_running) == (512, 3 << 20, 4, 5)
    assert engine.warm_folder == tmp_path / "kv"
    assert engine == EngineConfig(
        step_tokens=512, kv_memory=3 << 20, queue_limit=4, max_running=5, kv_dtype="int8", warm_folder=tmp_path / "kv"
    )


def test_a_wrong_option_is_named_with_its_flag_variable_and_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLIO_KV_DTYPE", "int4")
    with pytest.raises(
        InvalidRequest, match=r"'kv_dtype' = 'int4' is not valid.*\(Flag, FOLIO_KV_DTYPE, or folio.toml"
    ):
        load_settings()
    with pytest.raises(
        InvalidRequest, match="'kv_dtype' is not valid: input should be 'auto', 'float32', 'bfl"
    ) as refused:
        EngineConfig.of(kv_dtype="int4")
    assert refused.value.param == "kv_dtype"
    with pytest.raises(InvalidRequest, match="'max_waiting' is not valid: there is no such option"):
        EngineConfig.of(max_waiting=4)


def test_options_that_contradict_one_another_are_told_without_the_others() -> None:
    with pytest.raises(InvalidRequest, match="FOLIO_HOST_MEMORY") as refused:
        load_settings(tensor_parallel=2, host_memory=1 << 20, api_key="hush")
    assert "hush" not in refused.value.detail
    assert load_settings(tensor_parallel=2).engine.warm_folder is None


def test_what_auto_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpu, found in ((False, ("cpu", "auto")), (True, ("cuda", "bfloat16"))):
        monkeypatch.setattr("torch.cuda.is_available", lambda gpu=gpu: gpu)
        config = EngineConfig().resolved()
        assert (config.device, config.dtype) == found
    assert EngineConfig().resolved("cpu", "float64").dtype == "float64"
    assert EngineConfig(device="cpu", dtype="float16").resolved().dtype == "float16"


def test_every_setting_is_documented() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_typing_errors_in_the_environment_are_found() -> None:
    assert stray_variables({"FOLIO_PROT": "1", "FOLIO_PORT": "1", "FOLIO_CONFIG": "x", "HOME": "/"}) == ["FOLIO_PROT"]


def test_a_byte_order_mark_in_the_file_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "folio.toml").write_bytes(b"\xef\xbb\xbfport = 1111\n")
    assert load_settings(home=tmp_path).port == 1111
