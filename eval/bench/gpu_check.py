"""``folio bench gpu_check`` (``make gpu-check``): are the GPU kernels right, and how near are they to the ceilings?

Made for a GPU that is at hand for minutes: nothing is installed, the figures are written after each section, and the
same command goes on where it was stopped. First the ceilings (copy bandwidth, bf16 matmul), while all kernels are
compiled in as many processes as there are cores; then the kernels against float32 at production shapes; then decode
steps of an 8B shape by graph replay with what they consist of, the kernels beside their peers, and real models.

Without a GPU it is a rehearsal: the same sections at toy sizes under Triton's interpreter, with the imports of such a
machine and no others; what needs a GPU is named as skipped, and the exit status is 0 when all that ran is right.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from eval.bench.base import BenchOptions, Figures, Result, bench
from eval.bench.gpu.bare import carry, hidden
from eval.errors import EvalError
from eval.figures import ROOT
from eval.options import Separated

if TYPE_CHECKING:
    from eval.bench.gpu.kernels import Bench

KERNEL_TESTS = tuple(
    f"tests/sparse_attn/kernels/triton/test_{name}.py"
    for name in ("attention", "in_pages", "invariant", "layers", "score", "selection", "skipping", "write")
)
FAR = [32768, 131072, 262144]
ROWS = [1, 33, 64, 65, 2048]
NEEDS_GPU = "times mean nothing without a GPU: what ran is the code"


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """Correctness, ceilings and times of the GPU path; on a CPU a rehearsal of the same."""

    minutes: Annotated[float, Option(help="Begin no new section after this long.")] = 7.5
    only: Annotated[tuple[str, ...], Separated(), Option(help="Sections to run; default: all.")] = ()
    again: Annotated[bool, Option("--again", help="Run sections anew that the output file has already.")] = False
    wheels: Annotated[Path | None, Option(help="Folder of carried wheels (scripts/carry.sh).")] = None


@dataclass
class Check:
    """A run of the check.

    Attributes:
        bench: shape, device and ceilings. small: a rehearsal, whose sizes are a thousandth.
        deadline: by `time.monotonic`.
    """

    bench: Bench
    small: bool
    deadline: float
    compiling: list[subprocess.Popen[bytes]]

    def sections(self) -> dict[str, Callable[[], Any]]:
        """In the order in which they are run."""
        # a profile of decode_steps says the first on a GPU, and the service itself waits for the second
        counted = {"launches": launches_of_a_layer, "late_compilations": late_compilations} if self.small else {}
        return {
            "ceilings": self.ceilings,
            "compiled": self.compiled,
            "correct": self.correct,
            "decode_steps": self.decode_steps,
            "decode": lambda: self.bench.decode(self.sizes(FAR), [1, 4, 16] if not self.small else [1, 2]),
            "trees": lambda: self.bench.tree(self.sizes([65536])[0], [9, 33, 65] if not self.small else [3]),
            "mixed": lambda: self.bench.mixed(*((2032, 16, 131072) if not self.small else (20, 2, 64))),
            "dense_prefill": lambda: self.bench.dense_prefill(self.sizes([8192, 32768, 131072])),
            "sparse_prefill": self.sparse_prefill,
            "selected_decode": lambda: self.bench.selected_decode(*((262144, 4096) if not self.small else (256, 64))),
            "pieces": self.pieces,
            "selecting": self.selecting,
            **counted,
            "invariant": self.invariant,
            "overlap": self.overlap,
            "first_token": self.first_token,
            "same_tokens": self.same_tokens,
            "batching": self.batching,
            "tests": lambda: run_tests(interpreted=self.small),
        }

    def sizes(self, lengths: list[int]) -> list[int]:
        return lengths if not self.small else [max(64, length // 2048) for length in lengths[:1]]

    def ceilings(self) -> dict[str, float]:
        return self.bench.ceilings(*((2048, 8192) if not self.small else (1, 64)))

    def compiled(self) -> dict[str, Any]:
        """Waits for the compilations that began with the check."""
        began = time.monotonic()
        failed = [process.args for process in self.compiling if process.wait() != 0]
        return {"processes": len(self.compiling), "failed": len(failed), "waited_s": time.monotonic() - began}

    def correct(self) -> list[dict[str, Any]]:
        from eval.bench.gpu.correct import check

        return check(self.bench, scale=1 if not self.small else 1024)

    def sparse_prefill(self) -> list[dict[str, Any]]:
        if not self.small:
            return self.bench.sparse_prefill([8192, *FAR])
        return self.bench.sparse_prefill([128], "xattention:gate=0,block=32,stride=8,sink=16,local=32,p=0.5", chunk=32)

    def decode_steps(self) -> list[dict[str, Any]]:
        from eval.bench.gpu.engine import TINY, decode_steps, random_model

        changes = TINY if self.small else {}
        loaded = random_model("Llama-3.1-8B", self.bench.device, self.bench.dtype, **changes)
        rows: list[dict[str, Any]] = []
        for length in self.sizes(FAR):
            for batch in (1, 4, 16) if not self.small else (1, 2):
                if time.monotonic() < self.deadline:
                    rows += decode_steps(loaded, length, batch, self.bench.copy_bytes_per_s)
        return rows

    def pieces(self) -> list[dict[str, Any]]:
        """A chunk beside decodes, whose attention alone is launched by the host."""
        from eval.bench.gpu.engine import TINY, pieced_steps, random_model

        loaded = random_model("Qwen3-0.6B", self.bench.device, self.bench.dtype, **(TINY if self.small else {}))
        sizes = [(240, 16, 4096), (2032, 16, 4096)] if not self.small else [(20, 2, 24)]
        return [row for size in sizes for row in pieced_steps(loaded, *size)]

    def selecting(self) -> list[dict[str, Any]]:
        """Page selection within a replayed decode step."""
        from eval.bench.gpu.engine import TINY, random_model, selecting_steps

        loaded = random_model("Qwen3-0.6B", self.bench.device, self.bench.dtype, **(TINY if self.small else {}))
        if self.small:
            return selecting_steps(loaded, "quest:budget=384,sink=64,recent=64,dense_layers=1", 500, 2)
        return [row for batch in (1, 8) for row in selecting_steps(loaded, "quest", 65536, batch)]

    def first_token(self) -> list[dict[str, Any]]:
        from eval.bench.gpu.engine import TINY, Ceilings, measure, random_model

        ceilings = Ceilings(self.bench.copy_bytes_per_s, self.bench.flops_per_s)
        rows: list[dict[str, Any]] = []
        for name, length in (("Llama-3.1-8B", 131072), ("Qwen2.5-7B", 32768)):
            if time.monotonic() < self.deadline:
                loaded = random_model(name, self.bench.device, self.bench.dtype, **(TINY if self.small else {}))
                new_tokens = 33 if not self.small else 3
                sizes = self.sizes([length])[0]
                rows += measure(loaded, ceilings, sizes, new_tokens=new_tokens, deadline=self.deadline)
        return rows

    def invariant(self) -> dict[str, Any]:
        from eval.bench.gpu import invariant

        return {
            "products": invariant.products(self.bench, *((ROWS, 1) if not self.small else ([1, 65], 64))),
            "attention": invariant.attention(self.bench, self.sizes(FAR[:2]), 2048 if not self.small else 20),
        }

    def overlap(self) -> list[dict[str, Any]]:
        from eval.bench.gpu.engine import TINY, overlap, random_model

        loaded = random_model("Qwen3-0.6B", self.bench.device, self.bench.dtype, **(TINY if self.small else {}))
        return overlap(loaded, *((16, 1024, 256) if not self.small else (2, 24, 6)))

    def batching(self) -> dict[str, Any]:
        """Prompts of different lengths at once, beside transformers' continuous batching on the same weights."""
        from eval.bench.gpu.engine import TINY, batching, random_model

        loaded = random_model("Qwen3-0.6B", self.bench.device, self.bench.dtype, **(TINY if self.small else {}))
        return batching(loaded, *((16, 1024, 128) if not self.small else (2, 24, 4)))

    def same_tokens(self) -> list[dict[str, Any]]:
        from eval.bench.gpu.engine import divergences

        new_tokens = 256 if not self.small else 8
        rows = divergences(self.bench.device, self.bench.dtype, new_tokens)
        if not self.small:  # a CPU has an invariance of its own
            rows += divergences(self.bench.device, self.bench.dtype, new_tokens, batch_invariant=True)
        return rows


def run(options: Options) -> Figures:
    """The figures; see the module's words for what there is on a GPU and on a CPU."""
    import torch

    if options.wheels is not None:
        carry(options.wheels)
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ["TRITON_INTERPRET"] = "1"
    result = Result("gpu_check" if on_gpu else "gpu_check_cpu", options.output)
    figures: Figures = {} if options.again else dict(result.earlier() or {})
    if figures.get("device") not in (None, device := torch.cuda.get_device_name() if on_gpu else "cpu"):
        figures = {}  # of another machine
    figures |= {"device": device, "versions": _versions()}
    with hidden() if not on_gpu else nullcontext():
        check = _prepare(options, on_gpu, figures)
        unknown = set(options.only) - set(check.sections())
        if unknown:
            raise EvalError(f"There is no section {min(unknown)!r}; there are {', '.join(check.sections())}.")
        from eval.bench.gpu.tape import few_programs, kernels_of_a_gpu

        with kernels_of_a_gpu() if not on_gpu else nullcontext(), few_programs() if not on_gpu else nullcontext():
            for name, section in check.sections().items():
                _run_section(name, section, check, options, figures, result)
    if not on_gpu:
        figures["skipped"] = [NEEDS_GPU]
    return figures


def _prepare(options: Options, on_gpu: bool, figures: Figures) -> Check:
    import torch

    from eval.bench.gpu.kernels import Bench, Shape

    shape, device, dtype = Shape(), torch.device("cuda"), torch.bfloat16
    if not on_gpu:
        shape, device, dtype = Shape(heads=4, kv_heads=2, dim=16, page=16), torch.device("cpu"), torch.float32
    kernels = Bench(shape, device, dtype, repeats=9 if on_gpu else 1)
    known = figures.get("ceilings") or {}
    kernels.copy_bytes_per_s = 1e12 * known.get("copy_terabytes_per_s", float("nan"))
    kernels.flops_per_s = 1e12 * known.get("matmul_teraflops_per_s", float("nan"))
    compiling = [] if not on_gpu or "compiled" in figures else _start_compiling()
    return Check(kernels, not on_gpu, time.monotonic() + 60 * options.minutes, compiling)


def _run_section(
    name: str, section: Callable[[], Any], check: Check, options: Options, figures: Figures, result: Result
) -> None:
    """Unless it is there; its figures are written at once."""
    import torch

    kept = figures.get(name)
    wanted = not options.only or name in (*options.only, "ceilings")  # by which others are measured
    if not wanted or (kept is not None and not _failed(kept)):
        return
    if time.monotonic() > check.deadline:
        figures.setdefault("out_of_time", []).append(name)
        return
    began = time.monotonic()
    try:
        figures[name] = section()
    except Exception as error:  # one that fails must not hide the figures of the others
        figures[name] = {"error": f"{type(error).__name__}: {error}"}
        typer.echo(f"{name}: {figures[name]['error']}", err=True)
    figures.setdefault("section_s", {})[name] = round(time.monotonic() - began, 2)
    figures["out_of_time"] = [left for left in figures.get("out_of_time", []) if left != name]
    result.save(figures)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _failed(section: Any) -> bool:
    return isinstance(section, dict) and ("error" in section or bool(section.get("failed")))


def launches_of_a_layer() -> dict[str, int]:
    """What a decode step launches a layer, by kernel."""
    from eval.bench.gpu.launches import layer_launches

    found = layer_launches()
    return {**found, "in all": sum(found.values())}


def late_compilations() -> dict[str, Any]:
    """What would be compiled after the start of a service, which is nothing; in a process without the interpreter."""
    command = [sys.executable, "-m", "eval.bench.gpu.late_compilations"]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EvalError(done.stderr[-500:])
    found = done.stdout.splitlines()
    return {"failed": len(found), "said": found[:3]}


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("torch", "triton", "transformers", "flash-attn", "flash-attn-3"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _start_compiling() -> list[subprocess.Popen[bytes]]:
    """Every kernel as production launches it, shared out over the cores, into Triton's cache."""
    count = len(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "eval.bench.gpu.hopper", "--all", "--share"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return [subprocess.Popen([*command, f"{n}/{count}"], cwd=ROOT, **quiet) for n in range(count)]  # type: ignore[call-overload]


def run_tests(interpreted: bool) -> dict[str, Any]:
    """The kernel tests in a process of their own, as Triton decides at import how it runs.

    Raises:
        EvalError: they are not in this installation.
    """
    if not (ROOT / KERNEL_TESTS[0]).is_file():
        raise EvalError("The kernel tests lie in the source tree; run gpu_check there.")
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpreted else "0", "FOLIO_KERNEL_TUNING": "0"}
    began = time.monotonic()
    alone = ["-p", "no:cacheprovider", "--confcutdir", "tests/sparse_attn"]  # the suite's own needs more than is there
    arguments = [sys.executable, "-m", "pytest", "-q", *alone, "-m", "not slow", *KERNEL_TESTS]
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    counts: dict[str, Any] = {word: _count(done.stdout, word) for word in ("passed", "failed", "skipped")}
    counts["failed"] += _count(done.stdout, "error")
    if done.returncode:
        counts["failed"] = max(1, counts["failed"])
        counts["said"] = (done.stdout + done.stderr)[-2000:]
    return {**counts, "seconds": round(time.monotonic() - began, 1), "interpreter": interpreted}


def _count(text: str, word: str) -> int:
    import re

    found = re.findall(rf"(\d+) {word}", text.rsplit("\n", 2)[-2] if "\n" in text else text)
    return int(found[-1]) if found else 0


def verdict(figures: Figures) -> bool:
    """Whether all that ran is right; what was skipped is named on standard error."""
    for words in figures.get("skipped", []):
        typer.echo(f"skipped: {words}", err=True)
    wrong = [name for name, section in figures.items() if _failed(section)]
    wrong += [row["case"] for row in _rows(figures.get("correct")) if not row["right"]]
    for name in ("decode_steps", "pieces", "selecting"):
        wrong += [f"{name}: {row['refused']}" for row in _rows(figures.get(name)) if row.get("refused")]
    parts = figures.get("invariant") or {}
    rows = [row for part in parts.values() for row in _rows(part)]
    wrong += [f"bits of {row}" for row in rows if not row["same_bits"]]
    wrong += [f"tokens of {row}" for row in _rows(figures.get("same_tokens")) if row["promised"] and "gap" in row]
    for name in wrong:
        typer.echo(f"wrong: {name}", err=True)
    return not wrong


def _rows(section: Any) -> list[dict[str, Any]]:
    return section if isinstance(section, list) else []


def name(options: Options, figures: Figures) -> str:
    """Of the result: what a CPU can prove is kept apart."""
    return "gpu_check_cpu" if figures["device"] == "cpu" else "gpu_check"


command = bench(Options, run, name, verdict=verdict)

if __name__ == "__main__":
    typer.run(command)
