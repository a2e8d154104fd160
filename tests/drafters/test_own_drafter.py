"""The example of a drafter of one's own, run as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_example_gives_the_same_answer_in_fewer_steps():
    run = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "own_drafter.py")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    (plain, steps), (drafted, fewer) = (
        line.partition(": ")[2].removesuffix(" steps").rsplit(" in ", 1) for line in run.stdout.splitlines()
    )
    assert drafted == plain
    assert int(fewer) < int(steps)
