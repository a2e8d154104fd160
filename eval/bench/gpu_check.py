"""``folio bench gpu_check`` (``make gpu-check``): are the GPU kernels right, and how near are they to the ceilings?

With a GPU: the kernel tests against the float64 reference, the two ceilings (copy bandwidth, bf16 matmul), then each
kernel as time and as a fraction of its ceiling, in the shapes of Llama-3.1-8B on Q, K, V of planted structure made on
the device. Without one: the tests under Triton's interpreter and the compilation for Hopper; what needs a GPU
is named as skipped, and the exit status is 0 when what ran has passed.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from eval.bench.base import BenchOptions, Figures, bench
from eval.bench.timer import seconds
from eval.errors import EvalError
from eval.figures import ROOT

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sparse_attn.kernels.operands import Pages, Rows

KERNEL_TESTS = (
    "tests/sparse_attn/kernels/triton/test_attention.py",
    "tests/sparse_attn/kernels/triton/test_score.py",
    "tests/sparse_attn/kernels/triton/test_write.py",
)
ENGINE_TESTS = ("tests/service/engine/test_on_gpu.py",)
GPU_ONLY = (
    "the engine's tests on a GPU",
    "ceilings: copy bandwidth and bf16 matmul",
    "dense prefill against SDPA and flash-attn, 8K to 128K",
    "sparse prefill against dense, 32K to 256K, with index time and density",
    "paged decode, 32K to 256K, batch 1, 4, 16, in bf16 and int8",
    "page-selected decode at 256K and a tree of 64 nodes",
    "capture in a CUDA graph",
    "the engine on random weights of Llama-3.1-8B, Qwen2.5-7B and Qwen3-0.6B: decode steps eager and as graphs, time "
    "to first token and decode at 32K and 128K",
)


@dataclass(frozen=True)
class Shape:
    """Attention of one layer."""

    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    page: int = 64

    @property
    def scale(self) -> float:
        return self.dim**-0.5


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """Kernel tests, ceilings and benchmarks of the GPU path; on a CPU what can be proven without a GPU."""

    minutes: Annotated[float, Option(help="Stop beginning new measurements after this long.")] = 7.0
    tests: Annotated[bool, Option(help="Run the kernel tests first.")] = True


def run(options: Options) -> Figures:
    """The figures; see the module's words for what there is on a GPU and on a CPU."""
    import torch

    deadline = time.monotonic() + 60 * options.minutes
    on_gpu = torch.cuda.is_available()
    figures: Figures = {"device": torch.cuda.get_device_name() if on_gpu else "cpu", "versions": _versions()}
    if options.tests:
        figures["tests"] = _run_tests(interpreted=not on_gpu)
    if not on_gpu:
        figures["hopper_build"] = _compile_for_hopper()
        figures["skipped"] = list(GPU_ONLY)
        return figures
    kernels = Bench(Shape(), torch.device("cuda"), torch.bfloat16)
    figures["ceilings"] = kernels.ceilings()
    sections: list[tuple[str, Callable[[], list[dict[str, Any]]]]] = [
        ("decode", lambda: kernels.decode([32768, 131072, 262144], [1, 4, 16])),
        ("sparse_prefill", lambda: kernels.sparse_prefill([8192, 32768, 131072, 262144])),
        ("dense_prefill", lambda: kernels.dense_prefill([8192, 32768, 131072])),
        ("selected_decode", lambda: kernels.selected_decode(262144, 4096)),
        ("tree", lambda: kernels.tree(65536, 64)),
        ("cuda_graph", lambda: [kernels.graph(65536)]),
        ("engine_qwen3_0.6b", lambda: _engine("Qwen3-0.6B", [32768], kernels, deadline)),
        ("engine_llama_3.1_8b", lambda: _engine("Llama-3.1-8B", [32768, 131072], kernels, deadline)),
        ("engine_qwen2.5_7b", lambda: _engine("Qwen2.5-7B", [32768], kernels, deadline)),
    ]
    for name, measure in sections:
        if time.monotonic() > deadline:
            figures.setdefault("out_of_time", []).append(name)
            continue
        try:
            figures[name] = measure()
        except Exception as error:  # one kernel that fails must not hide the figures of the others
            figures[name] = {"error": f"{type(error).__name__}: {error}"}
        torch.cuda.empty_cache()
    return figures


class Bench:
    """The measurements over one shape, device and dtype; on a CPU they run too, which the tests use."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype, repeats: int = 9) -> None:
        self.shape, self.device, self.dtype, self.repeats = shape, device, dtype, repeats
        self.copy_bytes_per_s = self.flops_per_s = math.nan

    def ceilings(self, megabytes: int = 2048, side: int = 8192) -> dict[str, float]:
        """Copy bandwidth (bytes read plus written) and matmul rate; the other figures are fractions of these."""
        import torch

        source = torch.empty(megabytes << 20, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        self.copy_bytes_per_s = 2 * source.numel() / self.seconds(lambda: target.copy_(source))
        a, b = (torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2))
        self.flops_per_s = 2 * side**3 / self.seconds(lambda: a @ b)
        return {
            "copy_terabytes_per_s": self.copy_bytes_per_s / 1e12,
            "matmul_teraflops_per_s": self.flops_per_s / 1e12,
        }

    def decode(self, lengths: list[int], batches: list[int]) -> list[dict[str, Any]]:
        """One row a sequence over paged context, bf16 and int8, against the time to read its K and V once."""
        from sparse_attn.kernels.operands import Pages
        from sparse_attn.kernels.triton.attention import paged_attention
        from sparse_attn.kv.quant import quantize

        rows = []
        for length in lengths:
            for batch in batches:
                if 4 * batch * length * self.shape.kv_heads * self.shape.dim > 60 << 30:
                    continue
                pages, new = self._paged(length, batch, rows_each=1)
                seconds = self.seconds(partial(paged_attention, pages, new))
                rows.append(self._bandwidth_row("bf16", length, batch, seconds, 2))
                if batch == 1:
                    (k8, k_scale), (v8, v_scale) = quantize(pages.k), quantize(pages.v)
                    int8 = Pages(k8, v8, pages.block_tables, k_scale, v_scale)
                    seconds = self.seconds(partial(paged_attention, int8, new))
                    rows.append(self._bandwidth_row("int8", length, batch, seconds, 1 + 4 / self.shape.dim))
        return rows

    def dense_prefill(self, lengths: list[int]) -> list[dict[str, Any]]:
        """Our dense causal attention, and every other that is installed, on the same tensors."""
        from sparse_attn.kernels.operands import Rows
        from sparse_attn.kernels.triton.attention import ragged_attention

        rows = []
        for length in lengths:
            q, k, v = self._planted(length)
            flops = 2 * length**2 * self.shape.heads * self.shape.dim
            ours = self.seconds(partial(ragged_attention, Rows.of_sequence(q, k, v, self.shape.scale)))
            row = {"length": length, "ms": ours * 1e3, "fraction_of_matmul": flops / ours / self.flops_per_s}
            for name, attend in _other_attention(q, k, v, self.shape.scale).items():
                other = self.seconds(attend)
                row[f"{name}_ms"], row[f"times_{name}"] = other * 1e3, ours / other
            rows.append(row)
        return rows

    def sparse_prefill(self, lengths: list[int], policy: str = "xattention", chunk: int = 8192) -> list[dict[str, Any]]:
        """The last chunk of a long prompt, sparse against dense: kernel, index and density apart."""
        from service.engine.options import parse_policy
        from sparse_attn.kernels.operands import Pages, Rows
        from sparse_attn.kernels.triton.attention import attention
        from sparse_attn.plan.policy import ModelShape
        from sparse_attn.plan.state import PolicyState
        from sparse_attn.rows import HeadPages, SequenceRows

        s = self.shape
        rows = []
        for length in lengths:
            new = min(chunk, length // 2)
            q, k, v = self._planted(length)
            context = length - new
            k_pages, v_pages = (self._to_pages(x[:context]) for x in (k, v))
            pages = Pages(k_pages, v_pages, self._ints(range(len(k_pages)))[None])
            rows_of = Rows.of_sequence(q[context:], k[context:], v[context:], s.scale, context)
            attend = partial(attention, pages, rows_of)
            shape = ModelShape(1, s.heads, s.kv_heads, s.dim, s.page)
            state = PolicyState(parse_policy(policy), shape, length + 1)
            held = [HeadPages(range(s.kv_heads), k_pages, pages.block_tables[0])]
            sequence = SequenceRows(q[context:], k[context:], s.scale, context, held)
            index = state.plan(sequence)
            dense = self.seconds(attend)
            row = {"length": length, "chunk": new, "policy": policy, "dense_ms": dense * 1e3}
            if index is None:
                rows.append({**row, "density": 1.0, "speedup": 1.0, "note": "gated: dense at this length"})
                continue
            planning = self.seconds(partial(state.plan_prefill, sequence))
            sparse = self.seconds(partial(attend, index))
            rows.append(
                {
                    **row,
                    "density": index.density(),
                    "kernel_ms": sparse * 1e3,
                    "index_ms": planning * 1e3,
                    "index_share": planning / (planning + sparse),
                    "speedup": dense / (planning + sparse),
                    "of_visited_block_limit": dense * index.density() / sparse,
                }
            )
        return rows

    def selected_decode(self, length: int, budget: int) -> list[dict[str, Any]]:
        """Decode that reads ``budget`` tokens of the best pages: scoring, choosing and attention against dense."""
        from sparse_attn.kernels.triton.attention import paged_attention
        from sparse_attn.kernels.triton.page_stats import page_bounds, update_page_stats
        from sparse_attn.kv.page_stats import LOGICAL_PAGE, PageStats
        from sparse_attn.plan.select import best_pages, page_weights

        s = self.shape
        held, new = self._paged(length, 1, rows_each=1)
        q, k, table = new.q, held.k, held.block_tables
        stats = PageStats(1, len(k), s.kv_heads, s.page, s.dim, logical=min(LOGICAL_PAGE, s.page), device=self.device)
        slots = table[0].long().repeat_interleave(s.page) * s.page
        slots += self._ints(range(s.page)).repeat(len(slots) // s.page)
        update_page_stats(stats.kmin[0], stats.kmax[0], k, slots)
        pages, count = table.shape[1], self._ints([table.shape[1]])
        ends = count.long()

        def choose() -> Tensor:
            bounds = page_bounds(q, stats.kmin[0], stats.kmax[0], table, count)
            return best_pages(page_weights(bounds, s.scale, s.kv_heads, 0, ends), budget // s.page)

        index = _decode_index(choose()[0], length, s.page, self.device)
        dense = self.seconds(partial(paged_attention, held, new))
        choosing = self.seconds(choose)
        reading = self.seconds(partial(paged_attention, held, new, index))
        return [
            {
                "length": length,
                "budget": budget,
                "pages": pages,
                "dense_us": dense * 1e6,
                "choose_us": choosing * 1e6,
                "kernel_us": reading * 1e6,
                "speedup": dense / (choosing + reading),
                "speedup_interval_4": dense / (choosing / 4 + reading),
            }
        ]

    def tree(self, length: int, nodes: int) -> list[dict[str, Any]]:
        """A draft tree over a paged context against one row over it."""
        import torch

        from sparse_attn.kernels.operands import Rows
        from sparse_attn.kernels.triton.attention import attention

        times = {}
        for rows in (1, nodes):
            mask = torch.ones(rows, rows, dtype=torch.bool, device=self.device).tril()
            mask &= torch.rand(rows, rows, device=self.device) < 0.3
            mask |= torch.eye(rows, dtype=torch.bool, device=self.device)
            pages, new = self._paged(length, 1, rows_each=rows)
            drafted = Rows.of_sequence(new.q, new.k, new.v, new.scale, length, tree_mask=mask)
            times[rows] = self.seconds(partial(attention, pages, drafted))
        return [
            {
                "length": length,
                "nodes": nodes,
                "one_row_us": times[1] * 1e6,
                "tree_us": times[nodes] * 1e6,
                "times_one_row": times[nodes] / times[1],
            }
        ]

    def graph(self, length: int) -> dict[str, Any]:
        """The decode kernel captured in a CUDA graph and replayed: the same numbers, without launch cost."""
        import torch

        from sparse_attn.kernels.triton.attention import paged_attention

        attend = partial(paged_attention, *self._paged(length, 4, rows_each=1))
        eager = self.seconds(attend)
        expected = attend()[0]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out, _ = attend()
        replay = self.seconds(graph.replay)
        return {
            "length": length,
            "eager_us": eager * 1e6,
            "replay_us": replay * 1e6,
            "equal": bool(torch.equal(out, expected)),
        }

    def seconds(self, work: Callable[[], Any]) -> float:
        """Median time of a call after warming up; by the device's own clock on a GPU."""
        import torch

        for _ in range(2):
            work()
        if self.device.type != "cuda":
            return statistics.median(seconds(work) for _ in range(self.repeats))
        times = []
        for _ in range(self.repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        return statistics.median(times)

    # --- inputs ------------------------------------------------------------------------------------------------------

    def _planted(self, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """q [n, Hq, D], k, v [n, Hkv, D] whose attention has sinks, a local window, columns and a slash.

        Random q and k would have flat attention, on which every sparse method looks useless or too good.
        """
        import torch
        import torch.nn.functional as F

        s = self.shape
        g = torch.Generator(device=self.device).manual_seed(0)

        def noise(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=g, device=self.device, dtype=torch.float32)

        def spread(x: Tensor, strength: float) -> Tensor:
            return F.normalize(x, dim=-1) * strength * math.sqrt(s.dim) ** 0.5

        topics = spread(noise(length // 256 + 2, 1, s.dim), 3.0).repeat_interleave(256, 0)[:length]
        sink = spread(noise(1, 1, s.dim), 3.0)
        k = noise(length, s.kv_heads, s.dim) * 0.3 + topics
        q = noise(length, s.heads, s.dim) * 0.3 + topics + sink
        k[:4] += sink
        columns = torch.randint(0, length, (max(4, length // 2048),), generator=g, device=self.device)
        k[columns] += sink * 0.9
        q[length // 2 :] += topics[: length - length // 2] * 0.9  # a slash: text that comes back
        return q.to(self.dtype), k.to(self.dtype), noise(length, s.kv_heads, s.dim).to(self.dtype)

    def _to_pages(self, x: Tensor) -> Tensor:
        """[n, Hkv, D] → [pages, Hkv, page, D], in order."""
        return x.unflatten(0, (-1, self.shape.page)).transpose(1, 2).contiguous()

    def _paged(self, length: int, batch: int, rows_each: int) -> tuple[Pages, Rows]:
        """Shuffled pages of random k, v for every sequence, and random new rows."""
        import torch

        from sparse_attn.kernels.operands import Pages, Rows

        s = self.shape
        pages = length // s.page
        k, v = (
            torch.randn(batch * pages, s.kv_heads, s.page, s.dim, device=self.device, dtype=self.dtype)
            for _ in range(2)
        )
        count = batch * rows_each
        q, new_k, new_v = (
            torch.randn(count, heads, s.dim, device=self.device, dtype=self.dtype)
            for heads in (s.heads, s.kv_heads, s.kv_heads)
        )
        tables = torch.randperm(batch * pages, device=self.device).int().view(batch, pages)
        bounds = self._ints(range(0, count + 1, rows_each))
        return Pages(k, v, tables), Rows(q, new_k, new_v, bounds, self._ints([length] * batch), s.scale)

    def _ints(self, numbers: Any) -> Tensor:
        import torch

        return torch.tensor(list(numbers), dtype=torch.int32, device=self.device)

    def _bandwidth_row(self, dtype: str, length: int, batch: int, seconds: float, bytes_each: float) -> dict[str, Any]:
        wanted = 2 * batch * length * self.shape.kv_heads * self.shape.dim * bytes_each
        return {
            "kv": dtype,
            "length": length,
            "batch": batch,
            "us": seconds * 1e6,
            "fraction_of_copy_bandwidth": wanted / seconds / self.copy_bytes_per_s,
        }


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("torch", "triton", "transformers", "flash-attn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _engine(name: str, lengths: list[int], bench: Bench, deadline: float) -> list[dict[str, Any]]:
    """End to end on one model's shape; what the time does not allow is left out."""
    from eval.bench.gpu_engine import Ceilings, eager_and_graph, measure, random_model

    ceilings = Ceilings(bench.copy_bytes_per_s, bench.flops_per_s)
    loaded = random_model(name, bench.device, bench.dtype)
    rows = eager_and_graph(loaded, 4096)
    for length in lengths:
        if time.monotonic() < deadline:
            rows += measure(loaded, ceilings, length, deadline=deadline)
    return rows


def _decode_index(pages: Tensor, length: int, page: int, device: Any) -> Any:
    """The chosen pages int32 [Hkv, k] of one row, and the page it is about to write, as a `BlockIndex`."""
    import torch

    from sparse_attn.blocks import PAD, BlockIndex

    mask = torch.zeros(len(pages), 1, length // page + 1, dtype=torch.bool, device=device)
    mask[:, 0].scatter_(-1, pages.long().masked_fill(pages == PAD, length // page), True)
    return BlockIndex.of_runs(mask, [1], length, block_k=page).split()[0]


def _other_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> dict[str, Callable[[], Any]]:
    """Dense causal attention by what else is installed, by name."""
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q_first, k_first, v_first = (x.transpose(0, 1)[None] for x in (q, k, v))

    def by_sdpa(backend: SDPBackend) -> Callable[[], Any]:
        def attend() -> Any:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(
                    q_first, k_first, v_first, is_causal=True, scale=scale, enable_gqa=True
                )

        return attend

    found: dict[str, Callable[[], Any]] = {}
    for name, backend in (("sdpa_cudnn", SDPBackend.CUDNN_ATTENTION), ("sdpa_flash", SDPBackend.FLASH_ATTENTION)):
        attend = by_sdpa(backend)
        try:
            attend()
        except RuntimeError:
            continue  # this build or device does not have it
        found[name] = attend
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        return found
    found["flash_attn"] = lambda: flash_attn_func(q[None], k[None], v[None], softmax_scale=scale, causal=True)
    return found


def _run_tests(interpreted: bool) -> dict[str, Any]:
    """The kernel tests in a process of their own, as Triton decides at import how it runs."""
    if not (ROOT / KERNEL_TESTS[0]).is_file():
        raise EvalError("The kernel tests lie in the source tree; run gpu_check there, or with --no-tests.")
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpreted else "0", "FOLIO_KERNEL_TUNING": "0"}
    began = time.monotonic()
    with_engine = not interpreted and find_spec("structlog") is not None  # else only the kernels can be imported here
    tests = [*KERNEL_TESTS, *(ENGINE_TESTS if with_engine else ())]
    arguments = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests]
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    typer.echo(done.stdout[-4000:], err=True)
    counts = {word: _count(done.stdout, word) for word in ("passed", "failed", "skipped")}
    counts["failed"] += _count(done.stdout, "error")
    if done.returncode and not counts["failed"]:
        counts["failed"] = 1
    return {**counts, "seconds": round(time.monotonic() - began, 1), "interpreter": interpreted}


def _count(text: str, word: str) -> int:
    import re

    found = re.findall(rf"(\d+) {word}", text.rsplit("\n", 2)[-2] if "\n" in text else text)
    return int(found[-1]) if found else 0


def _compile_for_hopper() -> list[dict[str, Any]]:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    arguments = [sys.executable, "-m", "eval.bench.hopper"]
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EvalError(f"A kernel does not compile for Hopper: {done.stderr.strip().splitlines()[-1]}")
    built: list[dict[str, Any]] = json.loads(done.stdout)
    return built


def verdict(figures: Figures) -> bool:
    """Whether the kernel tests passed; what was skipped is named on standard error."""
    for name in figures.get("skipped", []):
        typer.echo(f"skipped, needs a GPU: {name}", err=True)
    return not figures.get("tests", {}).get("failed")


def name(options: Options, figures: Figures) -> str:
    """Of the result: what a CPU can prove is kept apart."""
    return "gpu_check_cpu" if figures["device"] == "cpu" else "gpu_check"


command = bench(Options, run, name, verdict=verdict)

if __name__ == "__main__":
    typer.run(command)
