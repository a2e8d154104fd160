"""`folio docs warm`: the next process answers a question on a known book without reading it again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
