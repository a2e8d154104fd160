"""A service that gets no model: what is kept, and what those are told who ask for it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from service.errors import DeviceLost, Exit, FolioError, InvalidRequest, ModelError, Unavailable
from service.runtime import Runtime, State, end_process
from service.settings import load_settings


@pytest.mark.parametrize(
    ("flags", "kind", "code", "says"),
    [
        ({"drafter": "nosuch"}, InvalidRequest, Exit.USAGE, "nosuch"),
        ({"attention": "quest:budget=1"}, InvalidRequest, Exit.USAGE, "budget=1"),
        ({"model": "no/such/folder"}, ModelError, Exit.FAILED, "no/such/folder"),
    ],
)
def test_a_failure_keeps_its_kind_and_is_unavailable_to_requests(
    tiny_model: Path, tmp_path: Path, flags: dict[str, Any], kind: type[FolioError], code: Exit, says: str
) -> None:
    settings = load_settings(**{"home": tmp_path, "model": str(tiny_model), **flags})

    async def fail() -> Runtime:
        runtime = Runtime(settings)
        await runtime.start()
        await runtime.ended.wait()
        assert runtime.state is State.FAILED
        await runtime.stop()
        return runtime

    runtime = asyncio.run(fail())
    assert type(runtime.failure) is kind
    assert runtime.failure.exit_code == code
    with pytest.raises(Unavailable, match=says):  # not the fault of whoever asks
        runtime.engine  # noqa: B018 - raises


def test_a_lost_device_ends_the_process_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr("service.runtime.os._exit", codes.append)
    monkeypatch.setattr("service.runtime.LAST_WORDS_S", 0)
    end_process(DeviceLost("The device cuda:0 is lost: an illegal address.", hint="Start anew."))
    assert codes == [Exit.FAILED]
    assert capsys.readouterr().err == "folio: The device cuda:0 is lost: an illegal address. Start anew.\n"
