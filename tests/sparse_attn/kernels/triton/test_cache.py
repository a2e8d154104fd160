"""Compiled kernels are found in a folder that was carried elsewhere."""

from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

from triton import knobs  # noqa: E402
from triton.runtime.cache import FileCacheManager  # noqa: E402

from sparse_attn.kernels.triton.cache import MovableCache  # noqa: E402


def test_a_kernel_is_found_after_its_folder_was_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cache(folder: str) -> Any:
        monkeypatch.setattr(knobs.cache, "dir", str(tmp_path / folder))
        return MovableCache("key")

    made = cache("made")
    made.put_group("kernel.json", {"kernel.cubin": made.put("binary", "kernel.cubin", binary=False)})
    (tmp_path / "made").rename(tmp_path / "carried")
    found = cache("carried").get_group("kernel.json")
    assert found == {"kernel.cubin": str(tmp_path / "carried" / "key" / "kernel.cubin")}
    assert FileCacheManager("key").get_group("kernel.json") is None, "Triton's own would do: this class is not needed"
    Path(found["kernel.cubin"]).unlink()
    assert cache("carried").get_group("kernel.json") is None
    (tmp_path / "carried" / "key" / "__grp__kernel.json").write_text("{")
    assert cache("carried").get_group("kernel.json") is None
    assert cache("carried").get_group("other.json") is None
