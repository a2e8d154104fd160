"""Exact or approximate nearest neighbours by FAISS, chosen by size.

Vectors have norm 1, so the inner product is the cosine. FAISS returns different low bits for a query alone and for
the same query in a batch; final scores are therefore computed here from the stored vectors, one way for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np

faiss: Any = _faiss  # its stubs know too little of it

FLAT_UP_TO = 200_000
"""rows up to which an exact scan is fast enough on a laptop; above, inverted lists"""


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
        if self._flat is None:
            ivf = faiss.try_extract_index_ivf(index)
            ivf.make_direct_map()
            ivf.nprobe = max(16, ivf.nlist // 32)

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
        """float32[b, n]: the product of float32[b, d] with every row of an exact index, in one pass over its memory."""
        import torch  # only a search needs it; listing documents should not wait for its import

        assert self._flat is not None
        with torch.inference_mode():
            return (torch.from_numpy(queries) @ torch.from_numpy(self._flat).T).numpy()

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> np.ndarray:
        """Ids int64[b, k] nearest to each of float32[b, d], −1 where there are fewer.

        allowed: int64[m], the only ids that may be returned; None for all.
        """
        params = None
        if allowed is not None:
            selector = faiss.IDSelectorBatch(allowed)
            params = (
                faiss.SearchParameters(sel=selector)
                if self.exact
                else faiss.SearchParametersIVF(sel=selector, nprobe=faiss.extract_index_ivf(self._index).nprobe)
            )
        return self._index.search(np.ascontiguousarray(queries), k, params=params)[1]

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


def cosines(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """float32[n]: a row's score depends on that row and the query alone, to the last bit."""
    return np.einsum("nd,d->n", vectors, query)


def _flat_storage(index: faiss.Index) -> np.ndarray | None:
    """float32[n, d] view of a Flat index' own memory (which must outlive it), None for other indexes."""
    inner = faiss.downcast_index(index.index) if hasattr(index, "index") else index
    if not isinstance(inner, faiss.IndexFlat):
        return None
    return faiss.rev_swig_ptr(inner.get_xb(), inner.ntotal * inner.d).reshape(inner.ntotal, inner.d)
