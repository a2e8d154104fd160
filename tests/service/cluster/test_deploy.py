"""The manifest names what is there: options, settings, the application; and without Ray there is one clear sentence."""

from __future__ import annotations

import builtins
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.cluster import deployment
from service.cluster.affinity import POLICIES
from service.cluster.options import ClusterOptions
from service.errors import InvalidRequest
from service.settings import Settings

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"


@pytest.fixture
def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text()))


def test_the_manifest_makes_an_application_that_exists(manifests: list[dict[str, Any]]) -> None:
    service = next(one for one in manifests if one["kind"] == "RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    application = config["applications"][0]
    module, _, name = application["import_path"].partition(":")
    builder = getattr(importlib.import_module(module), name)
    assert len(inspect.signature(builder).parameters) == 1, "Ray passes args as one mapping"
    options = ClusterOptions(**application["args"])
    assert options.max_replicas == 8
    assert application["name"] == deployment.APP


def test_the_manifest_and_the_image_set_settings_that_exist(manifests: list[dict[str, Any]]) -> None:
    text = (DEPLOY / "kuberay.yaml").read_text() + (DEPLOY / "Dockerfile").read_text()
    named = {name.lower() for name in re.findall(r"FOLIO_([A-Z_]+)", text)}
    assert named <= set(Settings.model_fields)
    service = next(one for one in manifests if one["kind"] == "RayService")
    workers = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]
    drain = next(one for one in workers["containers"][0]["env"] if one["name"] == "FOLIO_DRAIN_TIMEOUT_S")
    assert workers["terminationGracePeriodSeconds"] > int(drain["value"]) + 10
    application = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]
    assert application["args"]["cpus"] <= int(workers["containers"][0]["resources"]["requests"]["cpu"])


def test_the_image_copies_every_package() -> None:
    copied = set(re.findall(r"^COPY (\w+) \1$", (DEPLOY / "Dockerfile").read_text(), re.M))
    assert copied == {"sparse_attn", "drafters", "retrieval", "service", "eval", "folio", "scripts"}


def test_options_are_checked() -> None:
    assert {field.name for field in fields(ClusterOptions)} >= {"replicas", "max_replicas", "cpus", "gpus"}
    with pytest.raises(InvalidRequest, match="not 4 to 2"):
        ClusterOptions(replicas=4, max_replicas=2)
    with pytest.raises(InvalidRequest, match="gateways, not 0"):
        ClusterOptions(gateways=0)
    assert ClusterOptions().routing in POLICIES
    with pytest.raises(InvalidRequest, match="no cluster option 'replica'"):
        deployment.from_arguments({"replica": 2})


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("ingest", "{file}")])
def test_without_ray_one_sentence(
    command: tuple[str, ...], folio: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without_ray(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "ray":
            raise ImportError("No module named 'ray'")
        return real(name, *rest)

    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without_ray)
    file = tmp_path / "a.txt"
    file.write_text("words")
    arguments = [part.format(file=file) for part in command]
    code, out, err = folio("--home", tmp_path / "home", "cluster", *arguments)
    assert (code, out) == (1, "")
    assert err.strip() == "folio: Ray is not installed. pip install 'folio-serve[cluster]'"


def test_the_reason_of_a_replica_that_fails_is_found_in_rays_report() -> None:
    report = "Traceback …\nservice.errors.Unavailable: There is no model 'x'.\n  at …"
    assert deployment._cause(report, "Deploying failed") == "There is no model 'x'."
    assert deployment._cause("", "Deploying failed\nmore") == "Deploying failed."
