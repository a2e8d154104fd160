"""A copy of the index for searches on a GPU: refused in words without one, else the same answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
import pytest

from retrieval.errors import InvalidRequest
from retrieval.index import gpu_clone
from retrieval.index.dense import DenseIndex
from retrieval.iterative.retrievers import DenseRetriever


@pytest.fixture(autouse=True)
def _off_again() -> Iterator[None]:
    yield
    gpu_clone.enable(False)


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> list[Any]:
    """FAISS as if it had GPUs: what is copied to one is copied in memory; gives the copies."""
    copied: list[Any] = []

    def copy(resources: object, device: int, index: Any) -> Any:
        copied.append(index)
        return faiss.clone_index(index)

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: count, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", copy, raising=False)
    return copied


@pytest.mark.parametrize("factory", ["IDMap2,Flat", "IDMap2,IVF8,Flat"])
def test_searches_of_everything_go_to_the_copy(monkeypatch: pytest.MonkeyPatch, factory: str) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((400, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = np.arange(400, dtype=np.int64) * 3 + 7
    index = DenseIndex.build(ids, vectors, factory)
    expected = index.search(vectors[:5], 4)
    some = index.search(vectors[:5], 4, ids[:20])
    copied = with_gpus(monkeypatch, 1)
    gpu_clone.enable()
    np.testing.assert_array_equal(index.search(vectors[:5], 4), expected)
    np.testing.assert_array_equal(index.search(vectors[:5], 500)[:, 400:], -1)
    np.testing.assert_array_equal(index.search(vectors[:5], 4, ids[:20]), some)
    assert len(copied) == 1
    with monkeypatch.context() as without:
        without.setattr(DenseIndex, "scores", None)  # nor does a batch over everything scan the vectors here
        DenseRetriever(index, np.stack).search(list(vectors[:5]), 4)


def test_a_build_for_cpus_is_refused_by_name() -> None:
    if hasattr(faiss, "StandardGpuResources"):
        pytest.skip("this FAISS knows GPUs")
    with pytest.raises(InvalidRequest, match="needs faiss-gpu, and this FAISS is a build for CPUs"):
        gpu_clone.enable()
    assert not gpu_clone.enabled()


def test_no_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 0)
    with pytest.raises(InvalidRequest, match="FAISS sees none: set FOLIO_SEARCH_DEVICE=cpu"):
        gpu_clone.enable()
