"""Options that contradict one another are refused before anything is built."""

from __future__ import annotations

import pytest

from service.engine.config import EngineConfig
from service.errors import InvalidRequest


def test_running_requests_that_leave_prompts_no_rows_are_refused() -> None:
    EngineConfig.of(max_running=24, step_tokens=32)
    with pytest.raises(
        InvalidRequest, match="contradict one another: max_running of 25 leaves prompts too few"
    ) as refused:
        EngineConfig.of(max_running=25, step_tokens=32)
    assert "FOLIO_MAX_RUNNING to 24" in refused.value.detail
