"""What a device must be and have for a model: a torch built for it, and memory for the weights."""

from __future__ import annotations

from pathlib import Path

import torch

from service.errors import ModelError

WIDEST_KEY = 512  # bytes: 256 numbers of 16 bits, or 128 of float32


def check_device(device: str) -> None:
    """Refuse a device that torch cannot use here.

    Raises:
        ModelError: says whether the GPU, the driver or the build of torch is what is missing.
    """
    if not device.startswith("cuda"):
        return
    if torch.version.cuda is None:
        raise ModelError(
            f"{device} was asked for, and torch {torch.__version__} is a build without CUDA.",
            hint="Install torch's CUDA wheel, or use --device cpu.",
            param="device",
        )
    count = torch.cuda.device_count()
    if count == 0:
        raise ModelError(
            f"{device} was asked for, and torch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU.",
            hint="Look at `nvidia-smi`: the driver may be missing or too old for this wheel; or use --device cpu.",
            param="device",
        )
    number = int(device.partition(":")[2] or 0)
    if number >= count:
        raise ModelError(f"{device} was asked for; this machine has {count} GPU(s), from cuda:0 on.", param="device")
    capability, built = torch.cuda.get_device_capability(number), torch.cuda.get_arch_list()
    if built and not any(_runs_on(arch, capability) for arch in built):
        raise ModelError(
            f"{torch.cuda.get_device_name(number)} is of compute capability {capability[0]}.{capability[1]}, for which "
            f"torch {torch.__version__} is not built ({', '.join(built)}).",
            hint="Install a wheel of torch for this GPU, or use --device cpu.",
            param="device",
        )


def _runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Whether code for ``arch`` (sm_90a, compute_80 …) runs on a GPU: binaries within a major version, PTX upwards."""
    kind, _, number = arch.partition("_")
    digits = "".join(c for c in number if c.isdigit())
    version = int(digits[:-1] or 0), int(digits[-1:] or 0)
    return version <= capability and (kind == "compute" or version[0] == capability[0])


def check_heads(name: str, head_dim: int, dtype: torch.dtype) -> None:
    """Refuse heads that the kernels of a GPU have no room for: a multiprocessor keeps two tiles of keys and values.

    Raises:
        ModelError: names the width and what would fit.
    """
    width = (1 << (head_dim - 1).bit_length()) * dtype.itemsize
    if width <= WIDEST_KEY:
        return
    halved = dtype == torch.float32 and width // 2 <= WIDEST_KEY
    kind = str(dtype).removeprefix("torch.")
    raise ModelError(
        f"The model {name!r} has heads of {head_dim} numbers, too many in {kind} for a GPU's attention kernels.",
        hint="Use --dtype bfloat16." if halved else "Use --device cpu.",
        param="dtype" if halved else "model",
    )


def check_memory(name: str, needed: int, dtype: str, device: str) -> None:
    """Refuse weights of ``needed`` bytes that the device has no room for, before any of them is read.

    Raises:
        ModelError: says what is needed and what is free.
    """
    free = available_memory(device)
    if free is not None and needed > free:
        where = "free" if device == "cpu" else f"free on {device}"
        raise ModelError(
            f"The weights of the model {name!r} take {gigabytes(needed)} in {dtype}; {gigabytes(free)} are {where}.",
            hint="Take a smaller model" + ("." if dtype == "bfloat16" else " or --dtype bfloat16."),
            param="model",
        )


def check_room(name: str, weights: int | None, kv: int, device: str = "cpu") -> None:
    """Refuse pages of ``kv`` bytes that do not go beside weights that do, before any of those is read.

    Raises:
        ModelError: says what both need and what is free.
    """
    free = available_memory(device)
    if free is not None and (weights or 0) <= free < kv + (weights or 0):
        where = "free" if device == "cpu" else f"free on {device}"
        beside = f" beside {gigabytes(weights)} of weights" if weights else ""
        raise ModelError(
            f"The model {name!r} would have {gigabytes(kv)} for KV{beside}; {gigabytes(free)} are {where}.",
            hint="Lower FOLIO_KV_MEMORY.",
            param="kv_memory",
        )


def available_memory(device: str = "cpu") -> int | None:
    """Bytes that a process can still take on the device; None where the system does not say."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(torch.device(device))[0]
    found = [free for free in (_system_memory(), _cgroup_memory()) if free is not None]
    return min(found, default=None)


def gigabytes(count: int) -> str:
    """Bytes for a sentence."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _system_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


def _cgroup_memory() -> int | None:
    """What a container's limit leaves; its page cache can be taken back and does not count."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = int((folder / "memory.max").read_text(encoding="ascii"))
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):  # no cgroup, or no limit
        return None
    return max(0, limit - used + int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0)))
