"""A machine lent for minutes: PyTorch, transformers and Triton are there, a network is not.

What else the engine imports is carried as wheels (`scripts/carry.sh`). On the machine where the check is prepared
`hidden` takes away what such a machine lacks, so that an import that nobody carries fails there and not here.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from eval.errors import EvalError

CARRIED = (
    "structlog", "llguidance", "pydantic", "pydantic_core", "pydantic_settings", "annotated_types", "typing_inspection",
    "dotenv",
)  # fmt: skip
"""What the engine imports that such a machine lacks."""

PRESENT = (
    # what PyTorch, Triton and transformers bring
    "torch", "torchgen", "functorch", "triton", "transformers", "tokenizers", "safetensors", "huggingface_hub",
    "hf_xet", "accelerate", "numpy", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "filelock",
    "packaging", "yaml", "regex", "requests", "urllib3", "certifi", "idna", "charset_normalizer", "tqdm", "psutil",
    "typing_extensions", "httpx", "httpcore", "httpx2", "httpcore2", "truststore", "h11", "anyio", "sniffio",
    "nvidia",
    # what is at hand besides
    "typer", "click", "rich", "shellingham", "pygments", "markdown_it", "mdurl", "annotated_doc", "attr", "attrs",
    "pytest", "_pytest", "pluggy", "iniconfig", "pytest_timeout", "xdist", "execnet", "hypothesis",
    "_hypothesis_globals", "sortedcontainers", "numba", "llvmlite", "scipy", "coverage", "setuptools",
    "pkg_resources", "_distutils_hack", "cython", "google", "cffi", "_cffi_backend", "pycparser", "flash_attn",
    "flash_attn_interface",
)  # fmt: skip

_OWN = ("sparse_attn", "drafters", "service", "eval", "retrieval", "folio", "tests", "conftest")


def carry(folder: Path) -> None:
    """Put the wheels of a folder on the path, of this process and of those that it starts.

    Raises:
        EvalError: there are none.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise EvalError(f"There are no wheels in {folder}.", hint="Fetch them with scripts/carry.sh.")
    site = tempfile.mkdtemp(prefix="folio-carried-")
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(site)
    sys.path.insert(0, site)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (site, os.environ.get("PYTHONPATH", ""))))


class _Narrowed:
    """A finder of modules that knows only what is allowed; the rest is not there, for it."""

    def __init__(self, finder: Any, allowed: Sequence[str]) -> None:
        self.finder = finder
        self.allowed = {*allowed, *_OWN, *sys.stdlib_module_names, "__main__", "__mp_main__"}
        self._asking = threading.local()  # a tracer's finder asks all of `sys.meta_path`, itself among them

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        top = name.partition(".")[0]
        known = top in self.allowed or path is not None or top.startswith("_")
        if not known or getattr(self._asking, "name", None) == name:
            return None
        self._asking.name = name
        try:
            found: ModuleSpec | None = self.finder.find_spec(name, path, target)
        finally:
            self._asking.name = None
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


@contextmanager
def hidden(allowed: Sequence[str] = (*PRESENT, *CARRIED)) -> Iterator[None]:
    """Imports within this block find the standard library, this project and what is allowed, nothing else."""
    finders = sys.meta_path
    narrowed: Any = [_Narrowed(finder, allowed) for finder in finders]
    sys.meta_path = narrowed
    try:
        yield
    finally:
        sys.meta_path = finders
