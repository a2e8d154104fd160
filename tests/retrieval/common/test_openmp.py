"""A thread that has computed in passing leaves no team of OpenMP threads behind."""

import subprocess
import sys

import pytest

CODE = """
import os, sys, torch
from retrieval.common.openmp import release_team
torch.set_num_threads(3)
square = torch.rand(512, 512)
threads = lambda: len(os.listdir("/proc/self/task"))
torch.tanh(square.repeat(16, 16))
before = threads()
assert release_team()
after = threads()
torch.tanh(square.repeat(16, 16))
print(before - after, threads() - after)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_a_team_ends_and_is_made_anew() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "2"]
