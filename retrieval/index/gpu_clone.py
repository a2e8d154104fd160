"""A read-only copy of a FAISS index on a GPU, for approximate search over millions of chunks.

The index on the disk and in memory stays the one that is written; the copy serves searches over all chunks. Searches
restricted to some ids go to the original, because FAISS has no such restriction on a GPU for every kind of index.
"""

from __future__ import annotations

import threading
from typing import Any

import faiss as _faiss
import numpy as np

from retrieval.errors import InvalidRequest

faiss: Any = _faiss

_enabled = threading.Event()


def enable(wanted: bool = True) -> None:
    """Let this process search copies on the GPU, or stop it from doing so.

    Raises:
        InvalidRequest: FAISS is a build without GPU support, or sees no GPU.
    """
    if not wanted:
        _enabled.clear()
        return
    if not hasattr(faiss, "StandardGpuResources"):
        raise InvalidRequest(
            "search on a GPU needs faiss-gpu, and this FAISS is a build for CPUs: pip install 'folio-serve[gpu]', or "
            "set FOLIO_SEARCH_DEVICE=cpu"
        )
    if faiss.get_num_gpus() == 0:
        raise InvalidRequest("search on a GPU was asked for, and FAISS sees none: set FOLIO_SEARCH_DEVICE=cpu")
    _enabled.set()


def enabled() -> bool:
    """Whether searches go to copies on the GPU."""
    return _enabled.is_set()


class GpuClone:
    """The vectors of an ``IDMap2`` index on the first GPU; never changed."""

    def __init__(self, index: Any) -> None:
        self._ids: np.ndarray = faiss.vector_to_array(index.id_map)
        self._resources = faiss.StandardGpuResources()
        self._index = faiss.index_cpu_to_gpu(self._resources, 0, faiss.downcast_index(index.index))
        self._searching = threading.Lock()  # FAISS' GPU resources serve one search at a time

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Ids int64[b, k] nearest to each of float32[b, d], -1 where there are fewer."""
        with self._searching:
            rows = self._index.search(np.ascontiguousarray(queries), k)[1]
        return np.where(rows < 0, -1, self._ids[rows])
