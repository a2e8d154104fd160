"""Builds the C++ kernels at first use, for the machine at hand, and keeps the library in the user's cache.

The build is one compiler call of a few seconds. The library is linked to no OpenMP: it takes the runtime that torch
has already loaded, so that both share one pool of threads and none spins against the other.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from sparse_attn.kernels.cpu import features

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
SOURCES = (
    "attention.cpp", "decoder.cpp", "int8_linear.cpp", "linear.cpp", "pack.cpp", "packed_linear.cpp", "rows.cpp",
    "score.cpp",
)  # fmt: skip
HEADERS = (
    "amx.h",
    "blocks.h",
    "calls.h",
    "columns.h",
    "gate.h",
    "linear_tasks.h",
    "packed.h",
    "products.h",
    "simd.h",
    "units.h",
)
# No contraction: fused multiply-adds are written out, so that every instantiation rounds alike.
FLAGS = (
    "-O3", "-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared",
    "-Wno-psabi",
)  # fmt: skip


class BuildError(RuntimeError):
    """The kernels cannot be built or loaded here; the message says why and what would help."""


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded kernels, built if this machine has not built these sources before.

    Raises:
        BuildError: no compiler, a compiler that fails, or a library that does not load.
        UnknownInstructions: FOLIO_CPU_FEATURES asks for what the machine does not have.
    """
    compiler = _compiler()
    flags = (*features.compiler_flags(), *FLAGS)
    path = cache_folder() / f"libfolio_cpu-{_fingerprint(compiler, flags)}.so"
    if not path.exists():
        _build(compiler, flags, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"the CPU kernels in {path} do not load: {error}") from error


@functools.cache
def identity() -> str:
    """Names the kernels of this machine: sources, compiler, flags, processor and torch. Errors as of `library`."""
    return _fingerprint(_compiler(), (*features.compiler_flags(), *FLAGS))


def cache_folder() -> Path:
    """Where built kernels lie: FOLIO_KERNEL_CACHE, else `folio/kernels` in the user's cache folder."""
    chosen = os.environ.get("FOLIO_KERNEL_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "folio" / "kernels"


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "c++"):
        if name and (found := shutil.which(name)):
            return found
    raise BuildError("no C++ compiler (g++ 12 or later) on this machine; install one for the fast CPU kernels")


def _fingerprint(compiler: str, flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name in (*SOURCES, *HEADERS):
        digest.update((FOLDER / name).read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    for part in (version, " ".join(flags), _processor(), torch.__version__):
        digest.update(part.encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """What tuning depends on; a home folder may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _build(compiler: str, flags: tuple[str, ...], path: Path) -> None:
    logger.info("building the CPU kernels with %s into %s", compiler, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            target = Path(folder) / path.name
            sources = [str(FOLDER / name) for name in SOURCES]
            command = [compiler, *flags, *sources, "-o", str(target)]
            # No -lgomp: the undefined OpenMP symbols are those of the runtime that torch has loaded.
            done = subprocess.run([*command, "-nodefaultlibs", "-lstdc++", "-lm", "-lc", "-lgcc_s", "-lgcc"],
                                  capture_output=True, text=True, check=False)  # fmt: skip
            if done.returncode:
                raise BuildError(f"{compiler} cannot build the CPU kernels: {done.stderr.strip()[-2000:]}")
            os.replace(target, path)
    except OSError as error:
        raise BuildError(f"the CPU kernels cannot be built in {path.parent}: {error}") from error
