"""Zeroed memory in huge pages."""

import mmap
from pathlib import Path

import pytest
import torch

from sparse_attn.kv import huge_pages


def _flags(address: int) -> list[str]:
    """The kernel's flags of the mapping that holds an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return line.split()[1:]
    return []


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
@pytest.mark.parametrize("size", [(0,), (3, 5), (3, 1 << 20)])
def test_they_are_zeros(dtype, size):
    assert torch.equal(huge_pages.zeros(size, dtype), torch.zeros(size, dtype=dtype))


def test_large_tensors_ask_for_huge_pages():
    if not Path("/sys/kernel/mm/transparent_hugepage").exists() or not Path("/proc/self/smaps").exists():
        pytest.skip("this system has no transparent huge pages")
    large = huge_pages.zeros((16 << 20,), torch.float32)
    assert "hg" in _flags(large.data_ptr() + large.numel() * 2)


def test_memory_is_taken_when_it_is_first_used():
    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not tell what a process holds")

    def held() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    before = held()
    large = huge_pages.zeros((96 << 20,), torch.uint8)
    assert held() - before < 16 << 20
    large.fill_(1)
    assert held() - before > 80 << 20


def test_what_does_not_fit_raises():
    with pytest.raises(RuntimeError):
        huge_pages.zeros((1 << 60,), torch.float32)
