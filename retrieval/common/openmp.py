"""OpenMP teams of threads that are done with them.

Every thread that runs a parallel loop of torch's has a team of its own, which stays until the thread ends. Once all
teams together are larger than the machine, the runtime lets nobody spin at a barrier any longer, and each of the
hundreds of loops of a decode step waits for a sleeping thread to wake: on two cores a step of a 27 M-parameter Llama
takes half as long again. So whoever runs such loops in passing, beside the engine's thread, gives its team back.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

OMP_PAUSE_SOFT = 1  # omp.h
RUNTIMES = ("libgomp", "libgomp-*", "libiomp5", "libomp")


def release_team() -> bool:
    """End the team of the calling thread; its next parallel loop makes one anew, in about 50 µs a thread.

    Returns whether the runtime did.
    """
    runtime = _runtime()
    return runtime is not None and runtime.omp_pause_resource_all(OMP_PAUSE_SOFT) == 0


@cache
def _runtime() -> Any:
    """The OpenMP runtime that torch brought along; None where it has none of its own."""
    import torch

    folder = Path(torch.__file__).parent / "lib"
    for path in (found for name in RUNTIMES for found in folder.glob(f"{name}.so*")):
        library = ctypes.CDLL(str(path))  # torch has loaded it: nothing new is
        if hasattr(library, "omp_pause_resource_all"):
            return library
    return None
