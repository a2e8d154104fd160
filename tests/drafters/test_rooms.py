"""What the root of the package promises: trees and their verification need no tensors."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["drafters.tree", "drafters.verify", "drafters.options"])
def test_no_tensors_here(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
