"""Which vector instructions the CPU kernels use: the best family of this machine, or the one FOLIO_CPU_FEATURES names.

The kernels are built where they run, so a family is a set of compiler flags, and C++ asks for its parts by the
compiler's own macros (`__AVX512F__`, `__AVX512BF16__`, `__AMX_BF16__`, …).
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from pathlib import Path

from sparse_attn.errors import UnknownInstructions

_AVX512 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_BF16 = ("avx512_vnni", "avx512_bf16")
_AMX = ("amx_tile", "amx_bf16", "amx_int8")

# From the weakest to the strongest: the processor's flags that a family needs, and the compiler's.
FAMILIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "portable": ((), ("-march=x86-64",)),
    "avx2": (("avx2", "fma", "f16c"), ("-march=x86-64-v3",)),
    "avx512": (_AVX512, ("-march=x86-64-v4",)),
    "avx512_vnni": ((*_AVX512, _BF16[0]), ("-march=x86-64-v4", "-mavx512vnni")),
    "avx512_bf16": ((*_AVX512, *_BF16), ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16")),
    "amx": (
        (*_AVX512, *_BF16, *_AMX),
        ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
    ),
}
VARIABLE = "FOLIO_CPU_FEATURES"


@functools.cache
def family() -> str:
    """The family in use: a name of `FAMILIES`, or "native" on a processor that is not x86-64.

    Raises:
        UnknownInstructions: FOLIO_CPU_FEATURES names none, or one that this machine does not have.
    """
    present = _present()
    wanted = os.environ.get(VARIABLE)
    if wanted and wanted not in present:
        raise UnknownInstructions(f"{VARIABLE}={wanted} is none of what this machine has: {', '.join(present)}")
    return wanted or present[-1]


def compiler_flags() -> tuple[str, ...]:
    """What makes the compiler build for the family."""
    chosen = family()
    return (*FAMILIES[chosen][1], "-mtune=native") if chosen in FAMILIES else ("-march=native",)


def multiplies_bfloat16() -> bool:
    """Whether the family has instructions for products of bfloat16."""
    return family() in ("avx512_bf16", "amx")


def _present() -> list[str]:
    """The families of this machine, the best last."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ["native"]
    flags = processor_flags()
    found = [name for name, (needed, _) in FAMILIES.items() if flags.issuperset(needed)]
    return found if "amx" not in found or _may_use_tiles() else found[:-1]


def processor_flags() -> frozenset[str]:
    """What the processor has, by the names of /proc/cpuinfo; empty where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())


def _may_use_tiles() -> bool:
    """Linux gives a process the registers of AMX when it asks for them (arch_prctl(2), ARCH_REQ_XCOMP_PERM)."""
    if not sys.platform.startswith("linux"):
        return False
    arch_prctl, request, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0
