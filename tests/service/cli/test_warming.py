"""`folio docs warm`: the next process answers a question on a known book without reading it again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.engine.loading.sources import smollm2_file
from service.errors import ModelError

TEXT = " ".join(f"The keeper of gate number {n} is called Brother Aldous of the {n}th hour." for n in range(60))


def folio(home: Path, *arguments: str) -> Any:
    command = [
        sys.executable,
        "-c",
        "from service.cli.main import main; raise SystemExit(main())",
        "--home",
        str(home),
    ]
    done = subprocess.run([*command, *arguments, "--json"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_warmed_document_is_read_from_disk(tmp_path: Path) -> None:
    book = tmp_path / "gates.txt"
    book.write_text(TEXT)
    home = tmp_path / "home"
    document = folio(home, "ingest", str(book))["documents"][0]["id"]
    warmed = folio(home, "docs", "warm", document)
    assert warmed["tokens"] > 500
    answer = folio(home, "ask", "Who keeps gate number 41?", "--document", document, "--mode", "long")
    assert answer["stats"]["cached_tokens"] == warmed["tokens"]


@pytest.mark.slow
def test_warmed_passages_are_put_into_a_prompt_from_disk(tmp_path: Path) -> None:
    try:
        smollm2_file()
    except ModelError as error:
        pytest.skip(error.detail)
    book = tmp_path / "gates.txt"
    book.write_text(TEXT)
    home = tmp_path / "home"
    document = folio(home, "ingest", str(book))["documents"][0]["id"]
    warmed = folio(home, "docs", "warm", document, "--passages", "--model", "smollm2")
    assert warmed["passages"] > 1
    asked = ["ask", "Who keeps gate number 41?", "--mode", "retrieval", "--passages", "1", "--model", "smollm2"]
    stats = folio(home, *asked, "--attention", "blend:first=16")["stats"]
    assert stats["lossy"]
    assert stats["passage_hits"] == stats["passage_tokens"] > 50
