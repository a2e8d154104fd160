"""No file of the package needs, over whatever detour, one that needs it."""

from __future__ import annotations

from graphlib import TopologicalSorter

import grimp
import pytest


def test_no_circle_of_imports() -> None:
    """Imports for types alone and those within functions included; CycleError names a circle."""
    graph = grimp.build_graph("retrieval", cache_dir=None)
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imported) > 50
    TopologicalSorter(imported).prepare()


@pytest.mark.parametrize(
    ("lower", "higher"),
    [("common", "index"), ("parsing", "store"), ("store", "index"), ("index", "ingest"), ("index", "iterative")],
)
def test_rooms_are_stacked(lower: str, higher: str) -> None:
    graph = grimp.build_graph("retrieval", cache_dir=None)
    upward = graph.find_shortest_chains(f"retrieval.{lower}", f"retrieval.{higher}")
    assert upward == set()
