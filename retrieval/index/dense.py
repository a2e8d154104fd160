"""Exact or approximate nearest neighbours by FAISS, chosen by size.

Vectors have norm 1, so the inner product is the cosine. FAISS returns different low bits for a query alone and for
the same query in a batch; final scores are therefore computed here from the stored vectors, one way for all.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np
from numba import njit

from retrieval.common.processor import has_bfloat16
from retrieval.index import gpu_clone
from retrieval.index.gpu_clone import GpuClone

faiss: Any = _faiss  # its stubs know too little of it

FLAT_UP_TO = 200_000
"""rows up to which an exact scan is fast enough on a laptop; above, inverted lists"""

faiss.cvar.distance_compute_blas_threshold = 1024
"""queries × dimensions from which FAISS multiplies matrices, and so reads the vectors once for a few queries instead of
once for each; its own default (128,000) suits machines with more cores"""
HNSW_SEARCH = 128
"""candidates that a search of an HNSW index keeps, as Dense Passage Retrieval (2004.04906) and RaLMSpec have it"""

FLOAT32_ERROR = 5e-5
BFLOAT16_ERROR = 3 * 2**-8 + 1e-4
"""Most by which ``DenseIndex.scores`` may be off for unit vectors: each factor of a product rounded to 8 significant
bits (2⁻⁸ each; by Cauchy and Schwarz the products of two unit vectors add up to 1 at most), and the sum again."""


def factory_string(rows: int) -> str:
    """FAISS index by size: exact, then inverted lists, then compressed (shared by most FAISS guides)."""
    if rows <= FLAT_UP_TO:
        return "IDMap2,Flat"
    if rows <= 10_000_000:
        return f"IDMap2,IVF{4 * 2 ** round(math.log2(math.sqrt(rows)))},Flat"
    return "IDMap2,OPQ64,IVF65536_HNSW32,PQ64"


class DenseIndex:
    """Vectors by chunk id. Searches are thread-safe; the index never changes once built."""

    def __init__(self, index: faiss.Index) -> None:
        self._index = index
        self._flat = _flat_storage(index)
        self._halves: Any = None
        self._clone: GpuClone | None = None
        self._halving = threading.Lock()  # the making of these two
        if self._flat is None:
            _tune(index)

    @classmethod
    def build(cls, ids: np.ndarray, vectors: np.ndarray, factory: str | None = None) -> DenseIndex:
        """ids int64[n] rising and unique; vectors float32[n, d]."""
        index = faiss.index_factory(vectors.shape[1], factory or factory_string(len(ids)), faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(vectors)
        index.add_with_ids(vectors, ids)
        return cls(index)

    @property
    def exact(self) -> bool:
        return self._flat is not None

    @property
    def ids(self) -> np.ndarray:
        """int64[n] in the order of addition."""
        return faiss.vector_to_array(self._index.id_map)

    def scores(self, queries: np.ndarray) -> np.ndarray:
        """float32[b, n]: the product of float32[b, d] with every row of an exact index, to ``error``.

        Where the processor multiplies bfloat16, a copy of the vectors in it is read instead: half the memory, and
        a tenth of the arithmetic's time. Who needs exact scores computes those of the best rows anew.
        """
        import torch  # only a search needs it; listing documents should not wait for its import

        assert self._flat is not None
        with torch.inference_mode():
            if not has_bfloat16():
                return (torch.from_numpy(queries) @ torch.from_numpy(self._flat).T).numpy()
            with self._halving:
                if self._halves is None:
                    self._halves = torch.from_numpy(self._flat).bfloat16()
            products = self._halves @ torch.from_numpy(queries).bfloat16().T
        return _widened(products.view(torch.uint16).numpy()).view(np.float32)

    @property
    def error(self) -> float:
        """Most by which ``scores`` may be off for unit vectors."""
        return BFLOAT16_ERROR if has_bfloat16() else FLOAT32_ERROR

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> np.ndarray:
        """Ids int64[b, k] nearest to each of float32[b, d], −1 where there are fewer.

        allowed: int64[m], the only ids that may be returned; None for all.
        """
        if allowed is None and gpu_clone.enabled():
            return self._on_gpu().search(queries, k)
        params = None if allowed is None else _restricted(self._index, faiss.IDSelectorBatch(allowed))
        return self._index.search(np.ascontiguousarray(queries), k, params=params)[1]

    def _on_gpu(self) -> GpuClone:
        with self._halving:
            if self._clone is None:
                self._clone = GpuClone(self._index)
            return self._clone

    def vectors(self, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """float32[len(rows), d] of the chunks ``ids``, which were added as the rows ``rows``."""
        if self._flat is not None:
            return self._flat[rows]
        return self._index.reconstruct_batch(ids)

    def write(self, sink: Callable[[bytes], object]) -> None:
        """Serialise through ``sink``, whose errors (a full disk) surface, as FAISS' own writer's do not."""
        writer = faiss.PyCallbackIOWriter(lambda data: sink(bytes(data)), 1 << 22)
        faiss.write_index(self._index, writer)
        del writer  # flushes

    @classmethod
    def read(cls, path: Path) -> DenseIndex:
        return cls(faiss.read_index(str(path)))


@njit(nogil=True, cache=True)
def _widened(halves: np.ndarray) -> np.ndarray:  # pragma: no cover - compiled
    """uint32[b, n], the bits of float32, of uint16[n, b], the bits of bfloat16."""
    rows, columns = halves.shape
    wide = np.empty((columns, rows), np.uint32)
    for start in range(0, rows, 256):  # so many rows stay in the fastest cache until the last column
        for column in range(columns):
            for row in range(start, min(start + 256, rows)):
                wide[column, row] = np.uint32(halves[row, column]) << np.uint32(16)
    return wide


def cosines(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """float32[n]: a row's score depends on that row and the query alone, to the last bit."""
    return np.einsum("nd,d->n", vectors, query)


def _tune(index: faiss.Index) -> None:
    """How far an approximate index looks."""
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        ivf.make_direct_map()
        ivf.nprobe = max(16, ivf.nlist // 32)
        return
    hnsw = _hnsw(index)
    if hnsw is not None:
        hnsw.efSearch = HNSW_SEARCH


def _restricted(index: faiss.Index, selector: Any) -> Any:
    """Search parameters of this kind of index, for the ids of a selector."""
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        return faiss.SearchParametersIVF(sel=selector, nprobe=ivf.nprobe)
    hnsw = _hnsw(index)
    if hnsw is not None:
        return faiss.SearchParametersHNSW(sel=selector, efSearch=hnsw.efSearch)
    return faiss.SearchParameters(sel=selector)


def _hnsw(index: faiss.Index) -> Any:
    inner = faiss.downcast_index(index.index) if hasattr(index, "index") else index
    return inner.hnsw if hasattr(inner, "hnsw") else None


def _flat_storage(index: faiss.Index) -> np.ndarray | None:
    """float32[n, d] view of a Flat index' own memory (which must outlive it), None for other indexes."""
    inner = faiss.downcast_index(index.index) if hasattr(index, "index") else index
    if not isinstance(inner, faiss.IndexFlat):
        return None
    return faiss.rev_swig_ptr(inner.get_xb(), inner.ntotal * inner.d).reshape(inner.ntotal, inner.d)
