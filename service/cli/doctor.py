"""`folio doctor`: what is installed, what is used, and what is wrong."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING

import typer

from service.cli.context import JsonFlag, library_of, settings_of
from service.cli.output import emit_json
from service.errors import Exit, FolioError, ModelError, translate
from service.settings import Settings, stray_variables

if TYPE_CHECKING:
    from service.engine.config import EngineConfig
    from service.engine.loading.precision import Precision


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
        _kernels,
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
    return [Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]


def _torch(settings: Settings) -> list[Finding]:
    import torch

    from service.engine.loading.device import check_device
    from service.engine.runner.ranks import check_devices

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
    have = ", ".join(gpus) if gpus else f"no GPU; {os.cpu_count()} CPUs, {torch.get_num_threads()} threads"
    findings = [Finding("torch", "ok", f"{version('torch')} ({built}); {have}")]
    device = settings.engine.resolved().device
    why = "set" if settings.device != "auto" else "a GPU is there" if gpus else "no GPU"
    check_device(device)
    if settings.tensor_parallel > 1:
        check_devices(settings.tensor_parallel, device)
        why += f"; shared by {settings.tensor_parallel} ranks"
    return [*findings, Finding("device", "ok", f"{device} ({why})")]


def _kernels(settings: Settings) -> list[Finding]:
    """Which kernels attend, decode and search, and why these."""
    import torch

    from service.engine.loading.precision import DTYPES
    from sparse_attn.kernels import select_kernels
    from sparse_attn.kernels.cpu import features

    config = settings.engine.resolved()
    precision = _precision(config, settings.model)
    device, name = config.device, precision.dtype
    own = select_kernels(torch.device(device), DTYPES[name], "own").name
    both = select_kernels(torch.device(device), DTYPES[name], settings.attention_backend).name
    whole = both.removeprefix(own).removeprefix("+")
    findings = [Finding("attention", *_about_kernels(own, whole, device, name, settings.attention_backend))]
    if device == "cpu":
        family = f"FOLIO_CPU_FEATURES={features.family()}" if own != "torch" else "torch"
        products = precision.dtype if precision.weights == "plain" else precision.products
        detail = f"weights {precision.weights}, products of {products} ({family})"
        findings.append(Finding("linear layers", "ok", detail))
    if device.startswith("cuda"):
        graphs = "captured at the start" if settings.cuda_graphs else "off (FOLIO_CUDA_GRAPHS)"
        if settings.tensor_parallel > 1:
            graphs = "off: the ranks launch each step together"
        findings.append(Finding("cuda graphs", "ok", graphs))
    else:
        findings.append(Finding("cuda graphs", "ok", "none: for a GPU"))
    return [*findings, Finding("search", "ok", f"FAISS on {settings.search_device}")]


def _precision(config: EngineConfig, model: str) -> Precision:
    """In which numbers the model runs; another finding says what is wrong with one that cannot be read."""
    from service.engine.loading.precision import Precision, choose
    from service.engine.loading.sources import find_model

    try:
        return choose(find_model(model), config.dtype, config.weights, config.device, activations=config.activations)
    except ModelError:
        return Precision("float32" if config.dtype == "auto" else config.dtype)


def _about_kernels(own: str, whole: str, device: str, dtype: str, backend: str) -> tuple[str, str]:
    """State and detail of the attention kernels' finding; ``whole``: who attends long dense runs, if not ``own``."""
    if own == "torch" and device.startswith("cuda"):
        return "bad", "plain torch, many times slower: triton is not installed (pip install triton)"
    if own == "torch" and dtype in ("float32", "bfloat16"):
        return "note", "plain torch, several times slower: the C++ kernels cannot be built (is g++ there?)"
    reasons = {
        "triton": "our kernels for GPUs",
        "cpu-c++": f"our kernels for {dtype} on a CPU",
        "torch": f"plain torch: the C++ kernels are for float32 and bfloat16, this is {dtype}",
    }
    if not whole:
        return "ok", f"{own}: {reasons[own]}"
    chosen = "chosen (FOLIO_ATTENTION_BACKEND)" if backend != "auto" else "the best that is installed"
    return "ok", f"{own}: {reasons[own]}; long dense runs by {whole}, {chosen}"


def _options(_: Settings) -> list[Finding]:
    findings = [Finding("transformers", "ok", version("transformers")), _faiss()]
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
    return [*findings, _smollm2()]


def _smollm2() -> Finding:
    from service.engine.loading.sources import SMOLLM2, smollm2_file

    try:
        return Finding(SMOLLM2, "ok", str(smollm2_file()))
    except ModelError as error:
        return Finding(SMOLLM2, "note", error.detail)


def _faiss() -> Finding:
    import faiss

    there = hasattr(faiss, "StandardGpuResources")
    kind = f"for {faiss.get_num_gpus()} GPU(s)" if there else "for CPUs"
    return Finding("faiss", "ok", f"{faiss.__version__}, a build {kind}")


def _settings(settings: Settings) -> list[Finding]:
    findings = [Finding("home", "ok", str(settings.home)), Finding("model", "ok", settings.model)]
    findings += [Finding("environment", "note", f"{name} names no setting") for name in stray_variables()]
    if not settings.loopback and settings.api_key is None:
        findings.append(Finding("host", "note", f"{settings.host} needs an API key before the service starts"))
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
    """Load the model and decode one token; alone, where several ranks are to share it."""
    from service.engine.params import SamplingParams
    from service.models import check_shares_of, load_engine

    if settings.tensor_parallel > 1:
        check_shares_of(settings)
        settings = settings.model_copy(update={"tensor_parallel": 1})
    with load_engine(settings) as engine:
        (result,) = engine.generate([[0]], SamplingParams(max_tokens=1, ignore_eos=True))
    if result.error is not None:
        return [Finding("engine", "bad", result.error)]
    kernels = ", ".join(result.stats["kernels"])
    return [Finding("engine", "ok", f"{engine.engine.max_model_len} tokens; kernels {kernels}; runs")]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return f"found by {sys.executable}, without a version"
