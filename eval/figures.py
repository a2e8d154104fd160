"""Figures on disk: one JSON file per measurement, with the command and the machine that made them."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "eval" / "results"
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "faiss-cpu", "triton")


def save_result(name: str, figures: Mapping[str, Any], command: str, output: Path | None = None) -> Path:
    """Write ``figures`` to ``output``, or to ``eval/results/NAME.json``, and return the path.

    The file holds name, command, git SHA, machine and figures, and no date: the same code measured twice
    on the same machine differs in nothing but the measured figures.
    """
    path = Path(output) if output is not None else RESULTS / f"{name}.json"
    record = {
        "name": name,
        "command": command,
        "git": git_sha(),
        "machine": machine(),
        "figures": dict(figures),
    }
    write_atomically(path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False, default=_plain) + "\n")
    return path


def command_line() -> str:
    """The command as typed, but for folders of this machine: of the program and of absolute paths the name stays."""
    return shlex.join([Path(sys.argv[0]).name, *map(named, sys.argv[1:])])


def named(argument: str) -> str:
    """An absolute path's own name; anything else as it is."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code: processor, cores, threads, GPU, library versions."""
    import torch

    description: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
    }
    if torch.cuda.is_available():
        description["gpu"] = torch.cuda.get_device_name()
        description["cuda"] = torch.version.cuda
    return description


def git_sha() -> str | None:
    """The commit of the code that runs, with ``+`` appended where tracked files differ; None outside git."""
    sha = _git("rev-parse", "HEAD")
    if sha is None:
        return None
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", *_packages())
    return sha + ("+" if changed else "")


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` beside ``path`` and rename it there, so that a crash leaves the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _plain(value: Any) -> Any:
    """JSON for what figures are made of besides Python's own types: NumPy and torch scalars, arrays, paths."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a figure of type {type(value).__name__} cannot be written as JSON")


def _packages() -> list[str]:
    return ["sparse_attn", "drafters", "retrieval", "service", "eval", ":!eval/results"]


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
