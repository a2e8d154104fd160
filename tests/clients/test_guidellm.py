"""guidellm measures the service; its figures are not ours to judge, only that there are some."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.reader import MODEL_DIR


@pytest.mark.clients("guidellm", "benchmark, streamed, over synthetic prompts")
def test_a_benchmark(client_env: Callable[..., Any], service: Any, tmp_path: Path) -> None:
    environment = client_env("guidellm")
    report = tmp_path / "report.json"
    command = ["guidellm", "benchmark", "run", "--target", service.url, "--model", service.model]
    command += ["--backend-kwargs", json.dumps({"api_key": service.key})]
    command += ["--data", "prompt_tokens=40,output_tokens=8", "--processor", str(MODEL_DIR)]
    command += ["--profile", "synchronous", "--max-requests", "3", "--output-path", str(report)]
    environment.run(command)
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    assert benchmark
