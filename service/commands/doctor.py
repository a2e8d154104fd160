"""`folio doctor`: what is installed, what is used, and what is wrong."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import typer

from service.commands.context import JsonFlag, library_of, settings_of
from service.commands.output import emit_json
from service.errors import Exit, FolioError
from service.settings import Settings, stray_variables
from service.translation import translate


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `state` is ok, note (fine, but worth knowing) or bad."""

    subject: str
    state: str
    detail: str


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("doctor")(doctor)


def doctor(context: typer.Context, as_json: JsonFlag = False) -> None:
    """Look at the installation, the settings, the data folder and the model; exit code 1 when something is wrong."""
    settings = settings_of(context)
    checks: list[Callable[[Settings], list[Finding]]] = [
        _python,
        _torch,
        _options,
        _settings,
        _library,
        _model,
    ]
    findings = [finding for check in checks for finding in _guarded(check, settings)]
    if as_json:
        emit_json({"findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            typer.echo(f"{finding.state:<5} {finding.subject}: {finding.detail}")
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(Exit.FAILED)


def _guarded(check: Callable[[Settings], list[Finding]], settings: Settings) -> list[Finding]:
    """A check that fails is a finding, not the end of the others."""
    try:
        return check(settings)
    except Exception as error:
        known = translate(error)
        detail = known.detail if isinstance(known, FolioError) else f"{type(error).__name__}: {error}"
        return [Finding(check.__name__.strip("_"), "bad", detail)]


def _python(_: Settings) -> list[Finding]:
    return [
        Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    ]


def _torch(settings: Settings) -> list[Finding]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    device = (
        ", ".join(gpus) if gpus else f"no GPU; {os.cpu_count()} CPUs, {torch.get_num_threads()} threads"
    )
    findings = [Finding("torch", "ok", f"{version('torch')}; {device}")]
    if settings.device.startswith("cuda") and not gpus:
        findings.append(Finding("device", "bad", f"{settings.device} is set and there is no GPU."))
    return findings


def _options(_: Settings) -> list[Finding]:
    findings = [Finding("transformers", "ok", version("transformers"))]
    for module, package, use in (
        ("triton", "triton", "GPU kernels"),
        ("flash_attn", "flash-attn", "dense attention on a GPU"),
        ("ray", "ray", "more than one machine"),
    ):
        there = find_spec(module) is not None
        findings.append(
            Finding(
                package,
                "ok" if there else "note",
                _version(package) if there else f"not installed; for {use}",
            )
        )
    return findings


def _settings(settings: Settings) -> list[Finding]:
    findings = [Finding("home", "ok", str(settings.home)), Finding("model", "ok", settings.model)]
    findings += [Finding("environment", "note", f"{name} names no setting") for name in stray_variables()]
    if not settings.loopback and settings.api_key is None:
        findings.append(
            Finding("host", "note", f"{settings.host} needs an API key before the service starts")
        )
    return findings


def _library(settings: Settings) -> list[Finding]:
    with library_of(settings) as library:
        stats, report = library.stats(), library.verify_index()
    counts = f"{stats.documents} documents, {stats.chunks} chunks, generation {stats.generation}"
    findings = [Finding("database", "ok", stats.database), Finding("library", "ok", counts)]
    findings += [Finding("index", "bad", problem) for problem in report.problems]
    findings += [Finding("index", "note", note) for note in stats.notes]
    return findings


def _model(settings: Settings) -> list[Finding]:
    """Load the model and decode one token."""
    from service.engine.request import SamplingParams
    from service.models import load_engine

    engine = load_engine(settings)
    result = engine.generate([[0]], SamplingParams(max_tokens=1, ignore_eos=True))[0]
    kernels = ", ".join(result.stats.get("kernels", []))
    return [Finding("engine", "ok", f"{engine.max_model_len} tokens; kernels {kernels}; runs")]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return f"found by {sys.executable}, without a version"
