"""What docs/architecture.md claims of the code and a machine can check."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("folio", "eval", "service", "retrieval", "drafters", "sparse_attn")
PLAIN_DATA = (
    "drafters/tree.py",
    "drafters/verify.py",
    "service/engine/block_manager.py",
    "service/engine/finish.py",
    "service/engine/scheduler.py",
    "service/engine/step.py",
)


@cache
def imports() -> grimp.ImportGraph:
    """Which module imports which, those for type checkers alone included."""
    return grimp.build_graph(*PACKAGES, include_external_packages=True)


@pytest.mark.parametrize("path", PLAIN_DATA)
def test_plain_data_holds_no_tensors(path: str) -> None:
    """Decisions are tested in milliseconds: they know neither torch nor the model."""
    module = path.removesuffix(".py").replace("/", ".")
    assert "torch" not in imports().find_modules_directly_imported_by(module)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circle_of_imports(package: str) -> None:
    graph = imports()
    own = {m for m in graph.modules if m.startswith(f"{package}.")}
    try:
        TopologicalSorter({m: graph.find_modules_directly_imported_by(m) & own for m in own}).prepare()
    except CycleError as error:
        pytest.fail(f"{package} imports in a circle: {' → '.join(reversed(error.args[1]))}")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_says_what_it_is_about(package: str) -> None:
    silent = [
        path for path in sorted((ROOT / package).rglob("*.py")) if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent, [str(path.relative_to(ROOT)) for path in silent]
