"""A service of its own process with two tenants, under the attacks of `folio bench hostile`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from eval.bench.serving.attacks import ATTACKS
from eval.bench.serving.hostile import House, house

HEALTH_S, LATE_S, MEMORY_GB = 3.0, 8.0, 1.1
"""Beside other tests on two processors; `folio bench hostile` holds the stricter limits on a quiet machine."""


@pytest.fixture(scope="session")
def fuzz_seconds(pytestconfig: pytest.Config) -> float:
    """How long a fuzzer runs."""
    return float(pytestconfig.getoption("--fuzz-seconds"))


@pytest.fixture(scope="session")
def attacked() -> Iterator[House]:
    with house() as started:
        yield started


@pytest.fixture
def harmless(attacked: House) -> Callable[[Any], str]:
    """Run an attack; what the attacker was told, when others were served meanwhile."""

    def run(attack: Any) -> str:
        row = attacked.attack(attack, least_s=0.5)
        assert row["alive"]
        assert not row["faults"]
        assert row["health_s"] < HEALTH_S
        assert row["late_s"] < LATE_S
        assert row["memory_gb"] < MEMORY_GB
        return str(row["told"])

    return run


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes an `attack` takes each of the kind that its file is named by."""
    if "attack" in metafunc.fixturenames:
        kind = metafunc.module.__name__.rpartition("test_")[2]
        metafunc.parametrize(
            "attack",
            [
                pytest.param(one, id=one.name, marks=[pytest.mark.slow] if one.slow else [])
                for one in ATTACKS
                if one.kind == kind
            ],
        )
