"""Fixtures shared by every package's tests."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # Triton reads it when it is first imported, by whichever test comes first
    os.environ.setdefault("TRITON_INTERPRET", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real inputs beside the repository; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the folder of real inputs at {SHARED}")
    return SHARED
