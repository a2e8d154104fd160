"""Compile the Triton kernels for a Hopper GPU on any machine: proof that they build, and what they take.

Triton carries the assembler, so no GPU and no CUDA is needed. What cannot be known this way is their speed.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

TARGET = ("cuda", 90, 32)
_POINTERS = {
    "K_SCALE": "*fp32", "V_SCALE": "*fp32", "LSE": "*fp32", "ROW_START": "*i32", "ROW_COUNT": "*i32",
    "BLOCK_SEQ": "*i32", "POSITIONS": "*i64", "CU_SEQLENS": "*i32", "CONTEXT_LENS": "*i32", "TABLES": "*i32",
    "TABLE": "*i32", "COUNTS": "*i32", "IDS": "*i32", "K_OFFSET": "*i32", "TREES": "*u8", "TREE_OFFSETS": "*i64",
    "KMIN": "*fp32", "KMAX": "*fp32", "NUM_PAGES": "*i32", "SLOTS": "*i64", "PART_OUT": "*fp32", "PART_LSE": "*fp32",
}  # fmt: skip
_FLOATS = {"qk_scale", "softcap", "scale"}
_PREFILL = {"HEAD_DIM": 128, "BLOCK_D": 128, "PAGE": 64, "BLOCK_M": 128, "GROUP": 1, "TILES": 1, "SPLITS": 1}
_DECODE = {**_PREFILL, "BLOCK_M": 16, "GROUP": 4, "SPLITS": 16}
_PLAIN = {"HAS_POSITIONS": True, "WINDOW": False, "CAP": False}
_NO_SCALES = {"K_SCALE": None, "V_SCALE": None, "QUANT": False}
_NO_INDEX = {"COUNTS": None, "IDS": None, "HAS_INDEX": False}


def compile_all() -> list[dict[str, Any]]:
    """Compile each kernel in the shapes of an 8B model; a row each with registers, spills and shared memory.

    Raises:
        RuntimeError: Triton runs as an interpreter in this process; start another without TRITON_INTERPRET.
    """
    from sparse_attn.kernels import triton_attention, triton_launch, triton_score

    if triton_launch.INTERPRETED:
        raise RuntimeError("the kernels were imported for Triton's interpreter; compile in a process of its own")
    paged, ragged = triton_attention._paged_kernel, triton_attention._ragged_kernel
    ragged_prefill = {
        **{k: v for k, v in _PREFILL.items() if k not in ("PAGE", "SPLITS")},
        "BLOCK_N": 64,
        **_PLAIN,
        "K_OFFSET": None,
        **_NO_INDEX,
    }
    no_tree = {"TREE": False, "TREES": None, "TREE_OFFSETS": None}
    page = {"HEAD_DIM": 128, "BLOCK_D": 128}
    return [
        _compile("sparse prefill over pages", paged, {**_PREFILL, **_PLAIN, **_NO_SCALES, "HAS_INDEX": True}, warps=8),
        _compile("dense prefill over new rows", ragged, {**ragged_prefill, **no_tree}, warps=8),
        _compile("split decode", paged, {**_DECODE, **_PLAIN, **_NO_SCALES, **_NO_INDEX}, {"OUT": "*fp32"}),
        _compile("split decode of chosen pages", paged, {**_DECODE, **_PLAIN, **_NO_SCALES, "HAS_INDEX": True},
                 {"OUT": "*fp32"}),
        _compile("split decode of int8 pages", paged, {**_DECODE, **_PLAIN, **_NO_INDEX, "QUANT": True},
                 {"OUT": "*fp32", "K": "*i8", "V": "*i8"}),
        _compile("tree over pages", paged, {**_DECODE, "BLOCK_M": 128, "TILES": 2, **_PLAIN, **_NO_SCALES, **_NO_INDEX},
                 {"OUT": "*fp32"}, warps=8),
        _compile("tree over its nodes", ragged,
                 {**ragged_prefill, "GROUP": 4, "TILES": 2, "TREE": True}, warps=8),
        _compile("join of splits", triton_attention._join_kernel, {**page, "SPLITS": 16}),
        _compile("page bounds", triton_score._bounds_kernel,
                 {**page, "GROUP": 4, "BLOCK_G": 16, "PAGES": 64, "PARTS": 4}),
        _compile("page statistics", triton_score._page_stats_kernel, {**page, "LOGICAL": 16, "PARTS": 4}),
        _compile("antidiagonal scores", triton_score._antidiagonal_kernel,
                 {**page, "STRIDE": 16, "PAGE": 64, "BLOCK_M": 64, "BLOCK_N": 64, "PER_BLOCK": 8},
                 {"OUT": "*fp32"}, warps=8),
    ]  # fmt: skip


def _compile(
    name: str, kernel: Any, constants: dict[str, Any], types: dict[str, str] | None = None, warps: int = 4
) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    function = kernel if isinstance(kernel, JITFunction) else kernel.fn  # an autotuner holds the function
    names = function.arg_names
    signature = {n: "constexpr" if n in constants else {**_POINTERS, **(types or {})}.get(n) or _type(n) for n in names}
    aligned = [i for i, n in enumerate(names) if signature[n].startswith("*") or n.startswith("stride_")]
    source = ASTSource(
        function,
        signature=signature,
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    built = triton.compile(source, target=GPUTarget(*TARGET), options={"num_warps": warps, "num_stages": 3})
    ptx = built.asm["ptx"]
    return {
        "kernel": name,
        "warps": warps,
        "shared_bytes": built.metadata.shared,
        **_resources(built.asm["cubin"]),
        "wgmma": ptx.count("wgmma.mma_async"),
        "mma": ptx.count("mma.sync"),
        "asynchronous_copies": ptx.count("cp.async."),
    }


def _type(name: str) -> str:
    if name in _FLOATS:
        return "fp32"
    return "*bf16" if name.isupper() else "i32"


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
    import json

    print(json.dumps(compile_all()))
