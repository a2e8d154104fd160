"""Compile the Triton kernels for a Hopper GPU on any machine: proof that they build, and what they take.

Triton carries the assembler, so no GPU and no CUDA is needed. The real launchers run on small CPU tensors of the real
models' shapes, and every launch compiles instead: so the types, the alignments and the constants are those of
production, whatever the launchers make of them. What cannot be known this way is the kernels' speed.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TARGET = ("cuda", 90, 32)
SHARED_LIMIT = 232448  # bytes of shared memory that one program may have on Hopper
PAGE = 64


@dataclass(frozen=True)
class Heads:
    """One layer's attention."""

    model: str
    query: int
    kv: int
    dim: int


MODELS = (
    Heads("Llama-3.1-8B", 32, 8, 128),
    Heads("Qwen2.5-7B", 28, 4, 128),
    Heads("Qwen3-0.6B", 16, 8, 128),
    Heads("reader", 8, 4, 64),
)


def compile_all(
    models: tuple[Heads, ...] = MODELS[:1],
    every_config: bool = False,
    share: tuple[int, int] = (0, 1),
    only: str = "",
) -> list[dict[str, Any]]:
    """Compile what each mode of the engine launches; a row each with registers, spills and shared memory.

    Args:
        models: whose shapes.
        every_config: every configuration that tuning may choose, not the first alone.
        share: this one of so many equal shares of the launches, for so many processes.
        only: modes whose names hold this.

    Raises:
        RuntimeError: Triton runs as an interpreter in this process (start another without TRITON_INTERPRET), or a
            kernel does not compile.
    """
    import torch

    from sparse_attn.kernels.triton import launch as triton_launch

    if triton_launch.INTERPRETED:
        raise RuntimeError("the kernels were imported for Triton's interpreter; compile in a process of its own")
    rows: list[dict[str, Any]] = []
    turn = itertools.count()
    with compiling(every_config) as built:
        for heads in models:
            for dtype in (torch.bfloat16, torch.float16) if heads is models[0] else (torch.bfloat16,):
                for mode, launch in _modes(heads, dtype).items():
                    if only not in mode or next(turn) % share[1] != share[0]:
                        continue
                    launch()
                    about = {"mode": mode, "model": heads.model, "dtype": str(dtype).removeprefix("torch.")}
                    rows += [{**about, **row} for row in built]
                    built.clear()
    return rows


@contextmanager
def compiling(every_config: bool) -> Iterator[list[dict[str, Any]]]:
    """Turn kernel launches into compilations for Hopper; gives the list that they are added to."""
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    built: list[dict[str, Any]] = []
    run_kernel, run_tuned = JITFunction.run, Autotuner.run

    def compile_kernel(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run_kernel(self, *args, grid=grid, warmup=True, **kwargs)
        built.append({"kernel": self.fn.__name__, **_figures(kernel)})
        return kernel

    def compile_tuned(self: Any, *args: Any, **kwargs: Any) -> None:
        named = dict(zip(self.arg_names, args, strict=False))
        configs = self.early_config_prune(self.configs, named, **kwargs) if self.early_config_prune else self.configs
        for config in configs if every_config else configs[:1]:
            self.fn.run(*args, **kwargs, **config.all_kwargs())

    driver.set_active(_Absent())
    JITFunction.run, Autotuner.run = compile_kernel, compile_tuned
    try:
        yield built
    finally:
        JITFunction.run, Autotuner.run = run_kernel, run_tuned
        with suppress(RuntimeError):  # on a machine without a GPU there is no other
            driver.reset_active()


@contextmanager
def keyed() -> Iterator[set[str]]:
    """Launch nothing and compile nothing; gives the set of what Triton would have to compile for the launches."""
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    keys: set[str] = set()
    run_kernel, run_tuned = JITFunction.run, Autotuner.run

    def note(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kwargs.setdefault("debug", False)
        *_, binder = self.device_caches[0]
        _, specialization, options = binder(*args, **kwargs)
        keys.add(f"{self.fn.__name__} {specialization} {options}")

    def note_tuned(self: Any, *args: Any, **kwargs: Any) -> None:
        self.fn.run(*args, **kwargs, **self.configs[0].all_kwargs())

    driver.set_active(_Absent())
    JITFunction.run, Autotuner.run = note, note_tuned
    try:
        yield keys
    finally:
        JITFunction.run, Autotuner.run = run_kernel, run_tuned
        with suppress(RuntimeError):
            driver.reset_active()


class _Absent:
    """What Triton asks of a driver before it compiles, for a GPU that is not here."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget(*TARGET)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _modes(h: Heads, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """A launch for each mode of the engine."""
    import torch

    from sparse_attn.blocks import BlockIndex
    from sparse_attn.kernels import triton_kernels
    from sparse_attn.kernels.operands import Pages, Rows, Skip
    from sparse_attn.kernels.triton import attention as triton_attention
    from sparse_attn.kernels.triton import in_pages as triton_in_pages
    from sparse_attn.kernels.triton import invariant as triton_invariant
    from sparse_attn.kernels.triton import layers as triton_layers
    from sparse_attn.kernels.triton import linear as triton_linear
    from sparse_attn.kernels.triton import page_stats as triton_stats
    from sparse_attn.kernels.triton import score as triton_score
    from sparse_attn.kernels.triton import selection as triton_selection
    from sparse_attn.kernels.triton import write as triton_write
    from sparse_attn.kernels.work import FIELDS, LISTED_FIELDS, Launch, Tiling
    from sparse_attn.kv.quant import SCALE
    from sparse_attn.plan.grid import Grid
    from sparse_attn.rows import HeadPages, SequenceRows
    from sparse_attn.tree_masks import TreeMasks

    def rows(count: int, heads: int) -> Tensor:
        return torch.zeros(count, heads, h.dim, dtype=dtype)

    def ints(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    pages = 256
    caches = [torch.zeros(pages, h.kv, PAGE, h.dim, dtype=dtype) for _ in range(2)]
    codes = [torch.zeros(pages, h.kv, PAGE, h.dim, dtype=torch.int8) for _ in range(2)]
    scales = [torch.zeros(pages, h.kv, PAGE, dtype=SCALE) for _ in range(2)]
    table = torch.zeros(1, pages, dtype=torch.int32)

    def attend(
        count: int, per_head: bool | None = None, quant: bool = False, kernel: Any = triton_in_pages, **options: Any
    ) -> Callable[[], Any]:
        context = (pages - 8) * PAGE
        index = None
        if per_head is not None:
            heads, block = h.query if per_head else h.kv, 128 if count > 64 else count
            index = BlockIndex.full([count], [context], num_heads=heads, block_q=block, block_k=PAGE)
        held = Pages(codes[0], codes[1], table, scales[0], scales[1]) if quant else Pages(caches[0], caches[1], table)
        positions = torch.arange(context, context + count)
        new = Rows(
            rows(count, h.query), rows(count, h.kv), rows(count, h.kv), ints(0, count), ints(context), h.dim**-0.5,
            positions=positions, **options,
        )  # fmt: skip
        if index is None:
            return lambda: kernel.in_pages(held, new)
        return lambda: triton_attention.attention(held, new, index)

    def skips(count: int, **options: Any) -> Callable[[], Any]:
        skip = Skip(1.0, 1024, torch.zeros(2, dtype=torch.int64))
        return attend(count, kernel=triton_kernels(), skip=skip, **options)

    def product(count: int) -> Callable[[], Any]:
        x, weight = (torch.zeros(n, 4096, dtype=dtype) for n in (count, 1024))
        return lambda: triton_linear.linear(x, weight)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int32)

    def listed(count: int, **options: Any) -> Callable[[], Any]:
        """As a captured step attends the pages that it has listed."""
        tiling = Tiling.of(count, h.query, h.kv, PAGE)
        launch = Launch(tiling, zeros(count, len(FIELDS)), zeros(count, 3), 64)
        held = Pages(caches[0], caches[1], zeros(count * h.kv, pages))
        new = Rows(rows(count, h.query), rows(count, h.kv), rows(count, h.kv), ints(0, count), ints(0), h.dim**-0.5)
        masks = options.get("masks")
        return lambda: triton_in_pages.attend(held, new, masks, launch, zeros(count, h.kv))

    def flat(width: int) -> Tensor:
        return torch.zeros(33, width, dtype=dtype)

    q, k, v, turn = (flat(n * h.dim) for n in (h.query, h.kv, h.kv, 1))
    low, high = (torch.zeros(pages, h.kv, PAGE // 16, h.dim) for _ in range(2))
    held = [HeadPages(range(h.kv), caches[0], table[0])]
    chunk = SequenceRows(rows(1024, h.query), rows(1024, h.kv), h.dim**-0.5, 4096, held)
    trees = TreeMasks.pack([torch.ones(64, 64, dtype=torch.bool).tril()], torch.device("cpu"))
    return {
        "dense prefill": attend(512),
        "sparse prefill, index a KV head": attend(512, per_head=False),
        "sparse prefill, index a query head": attend(512, per_head=True),
        "prefill over int8 pages": attend(512, quant=True),
        "prefill with a window": attend(512, window=4096),
        "prefill with a soft cap": attend(512, softcap=50.0),
        "decode": attend(1),
        "decode of chosen pages": attend(1, per_head=False),
        "decode over int8 pages": attend(1, quant=True),
        "decode of chosen int8 pages": attend(1, per_head=False, quant=True),
        "decode with a window": attend(1, window=4096),
        "decode of listed pages": listed(1),
        "tree of listed pages": listed(33, masks=trees),
        "choice of pages": lambda: triton_selection.choose_pages(
            torch.zeros(4, h.query, 4096), ints(9, 9, 9, 9), zeros(h.kv), zeros(4, h.kv, 58), 0.1, 1
        ),
        "choice of pages by mass": lambda: triton_selection.choose_pages(
            torch.zeros(4, h.query, 2048), ints(9, 9, 9, 9), zeros(h.kv), zeros(4, h.kv, 58), 0.1, 1, 0.9
        ),
        "list of pages": lambda: triton_selection.list_pages(
            zeros(4, len(LISTED_FIELDS)), zeros(4, h.kv, 58), zeros(4, h.kv, 58), zeros(h.kv), table.expand(4, -1),
            ints(9, 9, 9, 9), (zeros(4, h.kv, pages), zeros(4, h.kv), zeros(4, h.kv)), (1, 1), PAGE,
        ),
        "tree of 64 nodes": attend(64, tree_masks=trees),
        "invariant decode": attend(1, kernel=triton_invariant),
        "invariant tree of 64 nodes": attend(64, kernel=triton_invariant, tree_masks=trees),
        "invariant prefill": attend(512, kernel=triton_invariant),
        "invariant decode over int8 pages": attend(1, quant=True, kernel=triton_invariant),
        "decode that skips": skips(1),
        "tree of 64 nodes that skips": skips(64, tree_masks=trees),
        "prefill that skips": skips(512),
        "prefill that skips, over int8 pages": skips(512, quant=True),
        "invariant product of few rows": product(33),
        "invariant product of many rows": product(300),
        "write": lambda: triton_write.write_rows(
            rows(80, h.kv), rows(80, h.kv), caches[0], caches[1], torch.arange(80)
        ),
        "write of int8": lambda: triton_write.write_rows(
            codes[0][:80, :, 0], codes[1][:80, :, 0], codes[0], codes[1], torch.arange(80),
            (scales[0][:80, :, 0], scales[1][:80, :, 0], *scales),
        ),
        "residual and norm": lambda: triton_layers.add_rms_norm(flat(4096), flat(4096), flat(4096)[0], 1e-5),
        "gated activation": lambda: triton_layers.silu_mul(flat(14336), flat(14336)),
        "placing": lambda: triton_layers.place(q, k, v, (turn, turn), None, (caches[0], caches[1]), torch.arange(33)),
        "placing with norms in int8": lambda: triton_layers.place(
            q, k, v, (turn, turn), (turn[0], turn[0], 1e-6), (codes[0], codes[1]), torch.arange(33),
            (scales[0], scales[1]),
        ),
        "page statistics": lambda: triton_stats.update_page_stats(low, high, caches[0], torch.arange(80)),
        "page statistics of int8": lambda: triton_stats.update_page_stats(
            low, high, codes[0], torch.arange(80), scales[0]
        ),
        "page bounds": lambda: triton_stats.page_bounds(
            rows(4, h.query), low, high, table.expand(4, -1), ints(9, 9, 9, 9)
        ),
        "antidiagonal scores": lambda: triton_score.antidiagonal(chunk, Grid.of(chunk, 128, 128), 16),
    }  # fmt: skip


def _figures(kernel: Any) -> dict[str, Any]:
    ptx = kernel.asm["ptx"]
    return {
        "warps": kernel.metadata.num_warps,
        "stages": kernel.metadata.num_stages,
        "shared_bytes": kernel.metadata.shared,
        **_resources(kernel.asm["cubin"]),
        "wgmma": ptx.count("wgmma.mma_async"),
        "products": sorted(set(re.findall(r"(?:wgmma\.mma_async|mma)\.sync[.\w]*", ptx))),
        "fused": ptx.count("fma.rn.f32"),
        "mma": ptx.count("mma.sync"),
        "asynchronous_copies": ptx.count("cp.async."),
        "buffers": _buffers(kernel.asm["ttgir"]),
    }


def _buffers(ttgir: str) -> int:
    """Into how many tiles in turn a loop loads ahead of its products: 1 is none, 0 where nothing is loaded ahead."""
    found = re.findall(r"ttg\.local_alloc\s*:\s*\(\)\s*->\s*!ttg\.memdesc<(\d+)x\d+x\d+x", ttgir)
    return max(map(int, found), default=0)


def _resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread and bytes of stack (spills) from the binary, by the tool that Triton carries."""
    import triton.backends.nvidia as nvidia

    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    return {"registers": int(found[1]), "stack_bytes": int(found[2])} if found else {}


if __name__ == "__main__":
    import argparse
    import json

    parser = argparse.ArgumentParser(description="Compile the Triton kernels for Hopper; a JSON row for each.")
    parser.add_argument("--all", action="store_true", help="every model's shape and every configuration of tuning")
    parser.add_argument("--share", default="0/1", help="of the launches, as 3/16 for the fourth of sixteen")
    parser.add_argument("--only", default="", help="modes whose names hold this")
    given = parser.parse_args()
    number, of = map(int, given.share.split("/"))
    print(json.dumps(compile_all(MODELS if given.all else MODELS[:1], given.all, (number, of), given.only)))
