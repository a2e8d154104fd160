"""Triton's cache of compiled kernels, found wherever its folder was carried to.

Triton writes down where the files of a kernel lie by their whole paths, so that a folder that was moved is as good as
empty.
"""

from __future__ import annotations

import json
from pathlib import Path

from triton import knobs
from triton.runtime.cache import FileCacheManager


class MovableCache(FileCacheManager):
    """A kernel's files are looked for beside the list of them."""

    def get_group(self, filename: str) -> dict[str, str] | None:
        """By name the paths of a kernel's files; None where one is not there."""
        listed = Path(self._make_path(f"__grp__{filename}"))
        if not listed.is_file():
            return None
        try:
            names = json.loads(listed.read_text(encoding="utf-8"))["child_paths"]
        except (ValueError, KeyError, TypeError):  # damaged: compiled anew
            return None
        found = {name: listed.parent / name for name in names}
        return {name: str(path) for name, path in found.items()} if all(map(Path.exists, found.values())) else None


def use_movable_cache() -> None:
    """For all kernels of this process, unless `TRITON_CACHE_MANAGER` names another."""
    if knobs.cache.manager_class is None:
        knobs.cache.manager_class = MovableCache
