"""Dense, sparse and hybrid search against references and brute force."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from conftest import sentences_about
from hypothesis import given
from hypothesis import strategies as st

from retrieval.embedding.encoding import CosineWeight
from retrieval.errors import NotFound
from retrieval.index import snapshot as snapshot_module
from retrieval.index.dense import DenseIndex, cosines, factory_string
from retrieval.index.generation import Generation
from retrieval.index.hybrid import blend, fuse, top
from retrieval.index.snapshot import Query, Segment, Snapshot
from retrieval.index.sparse import SparseIndex, SparseSegment, SparseStatistics
from retrieval.types import Upload

WORDS = [f"w{n}" for n in range(60)]


def corpus(size: int, seed: int) -> list[list[str]]:
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, len(WORDS) + 1)
    return [list(rng.choice(WORDS, size=int(rng.integers(3, 30)), p=weights / weights.sum())) for _ in range(size)]


def test_bm25_survives_a_round_trip(tmp_path) -> None:
    documents = corpus(50, 0)
    index = SparseIndex.build(documents)
    index.save(tmp_path)
    again = SparseIndex.load(tmp_path)
    for query in corpus(10, 1):
        np.testing.assert_array_equal(again.scores(query), index.scores(query))
    assert again.scores(["unheard"]).tolist() == [0.0] * 50


def test_new_chunks_are_scored_as_the_index_would(tmp_path) -> None:
    """A segment alone, with its own statistics, is an index."""
    documents = corpus(40, 3)
    segment = SparseSegment(documents)
    index = SparseIndex.build(documents)
    for query in corpus(10, 4):
        statistics = SparseStatistics(query, None, [segment])
        scores = segment.scores(query, statistics.idf, statistics.average_length)
        np.testing.assert_allclose(scores, index.scores(query), atol=1e-5)
        assert np.all(scores <= statistics.ceiling + 1e-6)


def unit_vectors(count: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("factory", ["IDMap2,Flat", "IDMap2,IVF8,Flat"])
def test_dense_index(factory: str, tmp_path) -> None:
    vectors = unit_vectors(400, 16, 0)
    ids = np.arange(400, dtype=np.int64) * 3 + 7
    index = DenseIndex.build(ids, vectors, factory)
    with (tmp_path / "d").open("wb") as file:
        index.write(file.write)
    for found in (index, DenseIndex.read(tmp_path / "d")):
        rows = np.array([5, 399, 0])
        np.testing.assert_allclose(found.vectors(rows, ids[rows]), vectors[rows], atol=1e-6)
        np.testing.assert_array_equal(found.ids, ids)
        allowed = ids[::2]
        nearest = found.search(vectors[:3], 5, allowed)
        assert np.isin(nearest, allowed).all()
        np.testing.assert_array_equal(nearest[:, 0][[0, 2]], ids[[0, 2]])
        if found.exact:
            expected = ids[np.argsort(-(vectors @ vectors[1]))[:5]]
            np.testing.assert_array_equal(found.search(vectors[1:2], 5)[0], expected)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_first_pass_is_as_exact_as_it_says(bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval.index.dense.has_bfloat16", lambda: bfloat16)
    vectors = unit_vectors(5000, 384, 2)
    vectors[1] = vectors[0]
    queries = np.concatenate([vectors[:3], unit_vectors(4, 384, 3)])
    index = DenseIndex.build(np.arange(5000), vectors)
    scores = index.scores(queries)
    assert scores.flags.c_contiguous
    off = np.abs(scores - queries.astype(np.float64) @ vectors.T.astype(np.float64)).max()
    assert off <= index.error
    assert (off > 1e-4) == bfloat16


def test_scores_are_within_their_error_where_every_factor_is_rounded_the_most():
    """1/√254 lies in the middle between two numbers of 8 significant bits, just above a power of two."""
    vector = np.full((1, 254), 254**-0.5, dtype=np.float32)
    index = DenseIndex.build(np.arange(1), vector)
    off = abs(float(index.scores(vector)[0, 0]) - 1.0)
    assert off <= index.error
    assert index.error < 1e-4 or off > 0.5 * index.error, "the case is near the bound"


def test_concurrent_searches_give_what_each_gives_alone(library) -> None:
    names = ["river", "stone", "lantern", "winter", "orchard"]
    for name in names:
        library.ingest([Upload(f"{name}.txt", sentences_about(name, 20).encode())], owner=name[0])
    asked = [(name, mode) for name in names for mode in ("hybrid", "dense", "sparse")]
    alone = [library.search(f"the {n} of winter", owner=n[0], mode=m).hits for n, m in asked]
    futures = [library.submit_search(f"the {n} of winter", owner=n[0], mode=m) for n, m in asked]
    foreign = library.submit_search("x", documents=[alone[0][0].document], owner="nobody")
    for hits, future in zip(alone, futures, strict=True):
        together = future.result().hits
        assert [hit.chunk_id for hit in together] == [hit.chunk_id for hit in hits]
        np.testing.assert_allclose([hit.score for hit in together], [hit.score for hit in hits], rtol=1e-6)
    with pytest.raises(NotFound):
        foreign.result()


def test_the_index_grows_with_the_corpus() -> None:
    assert factory_string(10_000) == "IDMap2,Flat"
    assert factory_string(1_000_000) == "IDMap2,IVF4096,Flat"
    assert "PQ" in factory_string(100_000_000)


def test_a_score_does_not_depend_on_the_company() -> None:
    vectors = unit_vectors(1000, 384, 1)
    query = vectors[0]
    together = cosines(vectors, query)
    apart = np.concatenate([cosines(vectors[i : i + 1], query) for i in range(1000)])
    np.testing.assert_array_equal(together, apart)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=60), st.integers(1, 10))
def test_top_breaks_ties_by_id(scores: list[float], k: int) -> None:
    ids = np.random.default_rng(len(scores)).permutation(len(scores))
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], ids[i]))[:k]
    assert top(np.array(scores), ids, k).tolist() == expected


def make_snapshot(documents: Sequence[list[list[str]]], new: Sequence[list[list[str]]], dim: int = 8) -> Snapshot:
    """A generation of ``documents`` (each a list of chunks, each a list of terms) and segments of ``new`` ones."""
    chunks = [chunk for document in documents for chunk in document]
    keys = [(f"d{n}", 1) for n in range(len(documents))]
    document_of_row = np.repeat(np.arange(len(documents), dtype=np.int32), [len(document) for document in documents])
    ids = np.arange(1, len(chunks) + 1, dtype=np.int64)
    generation = Generation(1, None, ids, document_of_row, keys)  # type: ignore[arg-type]
    vectors = unit_vectors(len(chunks), dim, 5)
    vectors[::7] = 0  # chunks that the encoder could not read
    generation.dense = DenseIndex.build(ids, vectors)
    generation.sparse = SparseIndex.build(chunks)
    segments, at = [], len(chunks) + 1
    for number, document in enumerate(new):
        segment_ids = np.arange(at, at + len(document), dtype=np.int64)
        at += len(document)
        segments.append(
            Segment((f"n{number}", 1), segment_ids, unit_vectors(len(document), dim, at), SparseSegment(document))
        )
    return Snapshot.of(generation, 0).after(1, {"d1"}, segments)


def by_hand(snapshot: Snapshot, query: Query, allowed: set[str]) -> list[tuple[int, float]]:
    """Every live and allowed chunk scored and sorted."""
    generation = snapshot.generation
    assert generation is not None
    statistics = SparseStatistics(query.text_terms, generation.sparse, [s.sparse for s in snapshot.segments])
    found: list[tuple[int, float]] = []
    everything = np.arange(len(generation.ids))
    vectors = generation.dense.vectors(everything, generation.ids)
    by = blend(query.mode, statistics.ceiling, query.weight)
    scores = fuse(by, cosines(vectors, query.vector), generation.sparse.scores(query.text_terms))  # type: ignore[arg-type]
    for row, score in enumerate(scores):
        key = generation.documents[generation.document_of_row[row]]
        if key[0] in allowed and snapshot.alive[generation.document_of_row[row]]:
            found.append((int(generation.ids[row]), float(score)))
    for segment in snapshot.segments:
        bm25 = segment.sparse.scores(query.text_terms, statistics.idf, statistics.average_length)
        fused = fuse(by, cosines(segment.vectors, query.vector), bm25)  # type: ignore[arg-type]
        if segment.key[0] in allowed:
            found += [(int(i), float(score)) for i, score in zip(segment.ids, fused, strict=True)]
    if by.cosine == 0:
        found = [pair for pair in found if pair[1] > 0]
    elif by.bm25 == 0:
        found = [pair for pair in found if pair[1] != 0]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))[: query.k]


@given(
    st.integers(0, 1000),
    st.sampled_from(["hybrid", "dense", "sparse"]),
    st.integers(1, 30),
    st.sets(st.sampled_from(["d0", "d1", "d2", "d3", "n0", "n1"])),
    st.sampled_from([1, 64, 5000]),
    st.sampled_from([CosineWeight(1.0, 0.0), CosineWeight(7.0, 0.75), CosineWeight(0.01, 0.0), CosineWeight(0.0, 0.0)]),
)
def test_search_is_exact(
    seed: int, mode: str, k: int, allowed: set[str], scan_up_to: int, weight: CosineWeight
) -> None:
    """The k best by (−score, id) in any scope, whether all rows are scored or candidates are searched for."""
    documents = [corpus(40, seed + n) for n in range(4)]
    snapshot = make_snapshot(documents, [corpus(5, seed + 50), corpus(1, seed + 51)])
    vector = unit_vectors(1, 8, seed + 9)[0]
    query = Query(corpus(1, seed + 60)[0][:6] if mode != "dense" else [], vector, mode, k, weight)  # type: ignore[arg-type]
    scope = snapshot.scope("x", lambda: allowed)
    before, snapshot_module.SCAN_UP_TO = snapshot_module.SCAN_UP_TO, scan_up_to
    try:
        ids, scores = snapshot.search(query, scope, lambda generation, q: generation.dense.scores(q[None])[0])
    finally:
        snapshot_module.SCAN_UP_TO = before
    expected = by_hand(snapshot, query, allowed)
    assert ids.tolist() == [chunk for chunk, _ in expected]
    np.testing.assert_allclose(scores, [score for _, score in expected], rtol=1e-6)
