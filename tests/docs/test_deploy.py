"""The files in deploy/ name what is there: folders, settings, values and metrics."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from prometheus_client.core import Metric

from service.api.metrics import COUNTERS, GAUGES, Metrics
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def test_the_image_holds_every_package_and_what_is_copied_is_there() -> None:
    copied = [
        line.split()[1:-1] for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line.startswith("COPY")
    ]
    names = {name for one in copied for name in one}
    assert all((ROOT / name).exists() for name in names)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["packages"]
    assert set(packages) <= names


def test_variables_are_settings() -> None:
    known = {f"FOLIO_{name.upper()}" for name in Settings.model_fields} | {"FOLIO_TORCH", "FOLIO_TORCH_CPU_INDEX"}
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.name != "kuberay.yaml":
            assert set(re.findall(r"FOLIO_[A-Z_]+", path.read_text())) <= known, path


def test_compose_waits_for_what_it_needs() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert services["folio"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert (DEPLOY / services["folio"]["build"]["context"] / services["folio"]["build"]["dockerfile"]).is_file()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert services["folio"]["build"]["args"]["EXTRAS"] in extras


def test_the_chart_uses_each_value_and_no_other() -> None:
    values = yaml.safe_load((DEPLOY / "helm" / "values.yaml").read_text())
    used = set(re.findall(r"\.Values\.([A-Za-z.]+)", (DEPLOY / "helm" / "templates" / "folio.yaml").read_text()))
    assert used == set(_leaves(values))
    chart = yaml.safe_load((DEPLOY / "helm" / "Chart.yaml").read_text())
    assert chart["appVersion"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    own = Metrics(SimpleNamespace(model_name="m", loaded=None, state="ready"))  # type: ignore[arg-type]
    there = {sample for family in own.registry.collect() for sample in _names(family)}
    there |= {f"folio:{name}" for name in GAUGES} | {f"folio:{name}_total" for name in COUNTERS}
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    asked = {name for panel in dashboard["panels"] for target in panel["targets"] for name in _metrics(target["expr"])}
    assert asked <= there
    assert len(asked) > 10


def _leaves(values: dict[str, Any], place: str = "") -> list[str]:
    """Names as templates use them: groups whose parts are used one by one, and the rest whole."""
    found = []
    for name, value in values.items():
        if isinstance(value, dict) and name in ("image", "service", "storage"):
            found += _leaves(value, f"{place}{name}.")
        else:
            found.append(f"{place}{name}")
    return found


def _names(family: Metric) -> list[str]:
    suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}
    return [f"{family.name}{suffix}" for suffix in suffixes.get(family.type, ("",))]


def _metrics(expression: str) -> list[str]:
    return re.findall(r"folio:[a-z_]+", expression)
