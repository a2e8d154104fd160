"""Inverted lists over the keys of a datastore, for approximate search: k-means on a sample of them (FAISS)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.common.files import write_synced
from retrieval.knn.storage import blocks, squared_norms, unpacked

_TRAINED_ON = 64
"""sampled keys per list from which the centroids are learnt"""
_TRAINING_ROUNDS = 10
_WRITTEN_ROWS = 1 << 16


def write_lists(folder: Path, keys: np.ndarray, key_type: str, lists: int, seed: int = 0) -> None:
    """Part the keys in inverted lists, and write the lists into the folder."""
    import faiss

    sample = np.random.default_rng(seed).permutation(len(keys))[: lists * _TRAINED_ON]
    limits = {"max_points_per_centroid": _TRAINED_ON, "min_points_per_centroid": 1}
    clustering: Any = faiss.Kmeans(keys.shape[1], lists, niter=_TRAINING_ROUNDS, seed=seed, **limits)
    clustering.train(unpacked(keys[np.sort(sample)], key_type))
    centroids = np.ascontiguousarray(clustering.centroids, dtype=np.float32)
    nearest = np.concatenate(list(_nearest_centroids(blocks(keys, key_type), centroids)))
    order = np.argsort(nearest, kind="stable").astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(nearest, minlength=lists))]).astype(np.int64)
    for name, array in (("centroids", centroids), ("offsets", offsets), ("entries", order)):
        write_synced(folder / f"list_{name}.bin", lambda sink, array=array: sink(array.tobytes()))  # type: ignore[misc]

    def write_keys(sink: Any) -> None:
        for start in range(0, len(order), _WRITTEN_ROWS):
            sink(keys[order[start : start + _WRITTEN_ROWS]].tobytes())

    write_synced(folder / "list_keys.bin", write_keys)


def _nearest_centroids(keys: Iterable[np.ndarray], centroids: np.ndarray) -> Iterator[np.ndarray]:
    import torch

    norms = torch.from_numpy(squared_norms(centroids))
    columns = torch.from_numpy(centroids).T
    for block in keys:
        yield (norms - 2 * (torch.from_numpy(block) @ columns)).argmin(1).numpy()
