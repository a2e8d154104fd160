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
    options = {
        "backend": f"kind=openai_http,target={service.url},model={service.model},api_key={service.key}",
        "tokenizer": f"kind=huggingface_auto,model={MODEL_DIR}",
        "data": "kind=synthetic_text,prompt_tokens=40,output_tokens=8",
        "profile": "kind=synchronous",
        "constraint": "kind=max_requests,count=3",
        "output": f"kind=json,path={report}",
    }
    command = ["guidellm", "run", "--disable-console", *(part for o, v in options.items() for part in (f"--{o}", v))]
    environment.run(command)
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    assert benchmark
