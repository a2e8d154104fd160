"""No request waits for a compilation: what Triton would compile is compiled before the service is ready."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.slow
def test_nothing_is_compiled_in_the_midst_of_the_service() -> None:
    """In a process of its own: this one has Triton's interpreter, which has no keys."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "eval.bench.gpu.late_compilations"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not done.stdout, done.stdout[:3000]
