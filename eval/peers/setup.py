"""Builds the environment of one peer: ``python -m eval.peers.setup NAME`` (or ``all``).

Environments lie under the user's cache, ``~/.cache/folio/peers/NAME`` (XDG_CACHE_HOME is honoured). Those that
need torch or transformers only to convert weights borrow torch from the environment that runs this script.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eval.errors import EvalError
from sparse_attn.kernels.cpu import features


@dataclass(frozen=True)
class Environment:
    """What pip installs.

    Attributes:
        packages: with their dependencies.
        bare: without theirs, which would pull in gigabytes.
        borrow: torch and what else is missing comes from the running environment.
        source: a package that is built here from its sources, with CMake's flags of ``cmake``.
    """

    packages: tuple[str, ...]
    bare: tuple[str, ...] = ()
    borrow: bool = False
    source: str = ""
    cmake: Callable[[], str] = str


_GGML = {
    "avx2": ("AVX", "AVX2", "FMA", "F16C", "BMI2"),
    "avx512f": ("AVX512",),
    "avx512_vbmi": ("AVX512_VBMI",),
    "avx512_vnni": ("AVX512_VNNI",),
    "avx512_bf16": ("AVX512_BF16",),
    "avx_vnni": ("AVX_VNNI",),
    "amx_tile": ("AMX_TILE",),
    "amx_int8": ("AMX_INT8",),
    "amx_bf16": ("AMX_BF16",),
}
"""ggml's build options by the processor's flags; by itself (GGML_NATIVE) it leaves that to a compiler that may not know
the processor."""


def ggml_flags() -> str:
    """llama.cpp's build for the instructions of this machine."""
    present = features.processor_flags()
    named = [f"-DGGML_{option}=ON" for flag, options in _GGML.items() if flag in present for option in options]
    mended = f"-DCMAKE_CXX_FLAGS=-include {shlex.quote(str(Path(__file__).with_name('amx_memory.h')))}"
    return shlex.join(["-DGGML_NATIVE=OFF", "-DLLAVA_BUILD=OFF", mended, *named])


ENVIRONMENTS = {
    "openvino": Environment(("openvino-genai>=2026.0", "numpy>=2.0")),
    "openvino-export": Environment(
        (
            "huggingface-hub<1.22",
            "nncf>=3.3",
            "openvino>=2026.0",
            "openvino-tokenizers>=2026.0",
            "tokenizers<0.23.1",
            "datasets<5",
            "requests",
        ),
        bare=("optimum-intel>=2.2,<2.3", "optimum>=2.3,<2.4", "transformers>=5.5,<5.6"),
        borrow=True,
    ),
    "llama_cpp": Environment(
        ("gguf", "safetensors", "numpy>=2.0", "cmake", "ninja", "scikit-build-core>=0.11"),
        source="llama-cpp-python>=0.3.30",
        cmake=ggml_flags,
    ),
    "ctranslate2": Environment(("ctranslate2>=4.7", "transformers<5", "numpy>=2.0"), borrow=True),
}


def home() -> Path:
    """The folder of all environments and converted weights."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "folio" / "peers"


def python_of(name: str) -> Path:
    """The interpreter of an environment.

    Raises:
        EvalError: it has not been built.
    """
    python = home() / name / "bin" / "python"
    if not (home() / name / "complete").exists():
        raise EvalError(f"the environment {name} is not built", hint=f"Run python -m eval.peers.setup {name}.")
    return python


def build(name: str) -> Path:
    """Create the environment if it is not there; returns its interpreter.

    Raises:
        EvalError: an unknown name, or pip failed (its last lines are in the message).
    """
    if name not in ENVIRONMENTS:
        raise EvalError(f"unknown environment {name!r}", hint=f"There are {', '.join(ENVIRONMENTS)}.")
    folder = home() / name
    if (folder / "complete").exists():
        return python_of(name)
    wanted = ENVIRONMENTS[name]
    venv.create(folder, with_pip=True, clear=True)
    python = folder / "bin" / "python"
    if wanted.bare:
        _pip(python, "--no-deps", *wanted.bare)
    _pip(python, *wanted.packages)
    if wanted.source:
        _compile(python, wanted, folder.with_name(f"{name}-build"))
    if wanted.borrow:
        site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        (site / "zz_borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    (folder / "complete").touch()
    return python


def _compile(python: Path, wanted: Environment, place: Path) -> None:
    """Build a package in ``place``, where a build that was stopped goes on; it is gone once the package is there."""
    sources, bare = place / "sources", ("--no-deps", "--no-build-isolation")
    if not sources.exists():
        shutil.rmtree(place, ignore_errors=True)
        _pip(python, *bare, "--no-binary", ":all:", "-d", str(place), wanted.source, command="download")
        archive = next(place.glob("*.tar.gz"))
        shutil.unpack_archive(archive, place / "unpacked", filter="data")
        next((place / "unpacked").iterdir()).rename(sources)
    objects = f"build-dir={place / 'objects'}"
    _pip(python, "--no-build-isolation", "-C", objects, str(sources), cmake=wanted.cmake())
    shutil.rmtree(place)


def _pip(python: Path, *arguments: str, command: str = "install", cmake: str = "") -> None:
    tools = f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"  # the environment's cmake and ninja
    done = subprocess.run(
        [str(python), "-m", "pip", command, "-q", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "CMAKE_ARGS": cmake, "PATH": tools},
    )
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise EvalError(f"pip could not install {' '.join(arguments)}:\n{tail}", hint="Is there a network?")


def main(names: list[str]) -> None:
    """Build the named environments."""
    for name in ENVIRONMENTS if names in ([], ["all"]) else names:
        print(f"{name}: {build(name)}")


if __name__ == "__main__":
    main(sys.argv[1:])
