"""Flags override the environment, which overrides the file; what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_every_setting_is_documented() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_typing_errors_in_the_environment_are_found() -> None:
    assert stray_variables({"FOLIO_PROT": "1", "FOLIO_PORT": "1", "FOLIO_CONFIG": "x", "HOME": "/"}) == ["FOLIO_PROT"]


def test_a_byte_order_mark_in_the_file_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "folio.toml").write_bytes(b"\xef\xbb\xbfport = 1111\n")
    assert load_settings(home=tmp_path).port == 1111
