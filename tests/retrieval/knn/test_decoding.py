"""kNN-LM: the datastore, its searches, and the speculative loop held to the sequential one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.common.failpoints import EXIT_CODE
from retrieval.errors import DatastoreMismatch, IndexCorrupt, InvalidRequest, NotFound, StoreBusy
from retrieval.iterative.strides import SpeculationOptions, StrideScheduler
from retrieval.knn import kernels as knn_kernels
from retrieval.knn import search as knn_search
from retrieval.knn import store as knn_store
from retrieval.knn.decoding import LONGEST_STRIDE, PRIOR, KnnCache, KnnDecoder, KnnOptions, interpolate
from retrieval.knn.kernels import squared_distances
from retrieval.knn.scan import Addends, error_bound, multiplies_bfloat16
from retrieval.knn.search import ExactSearch, ListSearch
from retrieval.knn.store import Datastore, StoreBuilder, StoreIdentity, sweep, windows

DIM = 6
VOCABULARY = 11


def identity(dim: int = DIM, key_type: str = "float32") -> StoreIdentity:
    return StoreIdentity("model", "tokenizer", dim, VOCABULARY, key_type, window=8, overlap=2)


def make_store(
    folder: Path, keys: np.ndarray, values: np.ndarray, lists: int = 0, key_type: str = "float32"
) -> Datastore:
    builder = StoreBuilder(folder, identity(keys.shape[1], key_type))
    half = len(keys) // 2
    builder.add(("a", 1), keys[:half], values[:half])
    builder.add(("b", 3), keys[half:], values[half:])
    return Datastore.open(builder.finish(lists))


def random_entries(count: int, seed: int, dim: int = DIM, whole: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Keys (of small whole numbers, hence many ties, where asked for) and values."""
    rng = np.random.default_rng(seed)
    keys = rng.integers(-2, 3, (count, dim)) if whole else rng.standard_normal((count, dim))
    return keys.astype(np.float32), rng.integers(VOCABULARY, size=count)


def by_hand(keys: np.ndarray, query: np.ndarray, k: int) -> np.ndarray:
    distances = ((keys.astype(np.float64) - query.astype(np.float64)) ** 2).sum(1)
    return np.lexsort((np.arange(len(keys)), distances))[:k]


# -- search


@pytest.fixture(scope="module")
def ties(tmp_path_factory: pytest.TempPathFactory) -> Datastore:
    """Entries of whole numbers: most distances occur many times, and all are exact."""
    return make_store(tmp_path_factory.mktemp("ties") / "s", *random_entries(3000, 0, whole=True), lists=16)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 200), st.integers(1, 40))
def test_knn_search_is_exact_and_orders_ties_by_entry(ties: Datastore, seed: int, k: int, count: int) -> None:
    queries = random_entries(count, seed, whole=True)[0]
    search = ExactSearch(ties)
    found = search(queries, k)
    for query, entries, distances in zip(queries, found.entries, found.distances, strict=True):
        np.testing.assert_array_equal(entries, by_hand(ties.keys, query, k))
        np.testing.assert_array_equal(distances, ((ties.keys[entries] - query) ** 2).sum(1))


@pytest.mark.parametrize("kind", ["exact", "lists"])
@pytest.mark.parametrize("key_type", ["float32", "float16", "bfloat16"])
def test_a_knn_query_finds_the_same_alone_and_in_company(kind: str, key_type: str, tmp_path: Path) -> None:
    """To the last bit, whatever the size of the batch."""
    store = make_store(tmp_path / "s", *random_entries(5000, 1, dim=48), lists=20, key_type=key_type)
    search = ExactSearch(store) if kind == "exact" else ListSearch(store, 5)
    queries = random_entries(40, 2, dim=48)[0]
    together = search(queries, 30)
    for size in (1, 3, 17):
        for start in range(0, 40, size):
            part = search(queries[start : start + size], 30)
            np.testing.assert_array_equal(part.entries, together.entries[start : start + size])
            np.testing.assert_array_equal(part.distances, together.distances[start : start + size])


def test_looking_at_every_list_is_exact_knn_search(ties: Datastore) -> None:
    queries = random_entries(20, 3, whole=True)[0]
    everything, lists = ExactSearch(ties)(queries, 50), ListSearch(ties, 1000)(queries, 50)
    np.testing.assert_array_equal(everything.entries, lists.entries)
    few = ListSearch(ties, 2)(queries, 50)
    assert not np.array_equal(everything.entries, few.entries)
    assert np.mean(few.distances[:, 0] == everything.distances[:, 0]) > 0.5


def test_a_small_knn_store_fills_up_with_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", *random_entries(3, 4))
    found = ExactSearch(store)(random_entries(2, 5)[0], 5)
    assert found.entries[:, 3:].tolist() == [[-1, -1], [-1, -1]]
    assert np.isinf(found.distances[:, 3:]).all()


@given(st.integers(0, 50), st.integers(1, 9))
def test_a_distance_does_not_depend_on_the_company(seed: int, count: int) -> None:
    keys, query = random_entries(40, seed, dim=37)[0], random_entries(1, seed + 1, dim=37)[0][0]
    together = squared_distances(keys, query)
    np.testing.assert_array_equal(squared_distances(keys[count : 2 * count].copy(), query), together[count : 2 * count])


@pytest.mark.parametrize("key_type", ["float32", "bfloat16"])
def test_knn_candidates_hold_the_nearest(key_type: str, tmp_path: Path) -> None:
    """Scores that are rounded, to bfloat16 too, lose no neighbour: long keys that lie close together."""
    rng = np.random.default_rng(0)
    keys = (30 + rng.standard_normal((4000, 128)) / 50).astype(np.float32)
    store = make_store(tmp_path / "s", keys, np.zeros(4000, int), key_type=key_type)
    queries = (30 + rng.standard_normal((3, 128)) / 50).astype(np.float32)
    found = ExactSearch(store)(queries, 5)
    kept = store.floats(np.arange(4000)).astype(np.float64)
    for query, entries, distances in zip(queries, found.entries, found.distances, strict=True):
        true = np.sort(((kept - query) ** 2).sum(1))[:5]
        np.testing.assert_allclose(distances, true, rtol=1e-5)
        np.testing.assert_allclose(((kept[entries] - query) ** 2).sum(1), true, rtol=1e-5)


@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([0.01, 1.0, 30.0]),
    spread=st.sampled_from([0.001, 0.1, 3.0]),
    other=st.sampled_from([0.3, 1.0, 1.02]),
    halves=st.booleans(),
)
def test_knn_scores_are_off_by_their_bound_at_most(
    seed: int, size: float, spread: float, other: float, halves: bool
) -> None:
    """Keys near and far, addends made for queries of their own size and of another."""
    import torch

    if halves and not multiplies_bfloat16():
        pytest.skip("this processor does not multiply bfloat16")
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal(64) * size
    numbers = (centre + rng.standard_normal((200, 64)) * spread * size).astype(np.float32)
    bits = knn_store.packed(numbers, "bfloat16")
    keys = knn_store.unpacked(bits, "bfloat16") if halves else numbers
    query = (centre + rng.standard_normal(64) * spread * size).astype(np.float32)
    norms = knn_store.squared_norms(keys)
    addends = Addends.of(norms, halves, other * float(query @ query))
    kind = torch.bfloat16 if halves else torch.float32
    columns = torch.from_numpy(np.stack([query, query])).T.to(kind)
    added = torch.from_numpy(addends.rounded).view(kind) if halves else torch.from_numpy(addends.rounded)
    product = torch.addmm(added[:, None], torch.from_numpy(keys).to(kind), columns)[:, 0].float().numpy()
    scores = (product + addends.rest).astype(np.float64)
    largest = float(np.sqrt(norms.max()))
    at_zero, square, linear, constant, _ = error_bound(query, addends, largest, halves)
    true = ((keys.astype(np.float64) - query.astype(np.float64)) ** 2).sum(1)
    apart = np.abs(true - (at_zero - 2 * scores))
    assert (apart <= square * true + linear * np.sqrt(true) + constant).all()
    if halves and spread < 1 and other >= 1:  # what it is for: near keys are told apart better than by rounding |q|²
        assert np.median(apart) < 2.0**-9 * float(query @ query)


@given(
    distance=st.floats(0.01, 50),
    at_zero=st.floats(-100, 1000),
    square=st.sampled_from([0.0, 2.0**-8]),
    linear=st.floats(0, 0.2),
    constant=st.floats(0, 2),
)
def test_the_knn_scan_keeps_what_its_bound_allows(
    distance: float, at_zero: float, square: float, linear: float, constant: float
) -> None:
    """Of k rows at one distance whose scores flatter them, none of another row there whose score wrongs it."""
    bound = np.array([at_zero, square, linear, constant, 1e-5])
    off = square * distance**2 + linear * distance + constant
    flattered, wronged = ((at_zero - (distance**2 + sign * off)) / 2 for sign in (-1, 1))
    for least in (knn_kernels.least_score(flattered, bound), knn_kernels.least_score_within(distance, bound)):
        assert least <= wronged
    assert knn_kernels.least_score(-np.inf, bound) == -np.inf


def test_knn_keys_are_rounded_as_torch_rounds() -> None:
    numbers = np.random.default_rng(0).standard_normal((50, 7)).astype(np.float32) * 10
    import torch

    expected = torch.from_numpy(numbers).bfloat16().float().numpy()
    np.testing.assert_array_equal(knn_store.unpacked(knn_store.packed(numbers, "bfloat16"), "bfloat16"), expected)


# -- the mixture


@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0.01, 100), st.integers(1, 30))
def test_interpolation_is_the_knn_formula(seed: int, weight: float, temperature: float, count: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(VOCABULARY))
    values = rng.integers(VOCABULARY, size=count)
    distances = np.sort(rng.exponential(10, size=count)).astype(np.float32)
    with np.errstate(divide="ignore"):
        mixed = np.exp(interpolate(np.log(p), values, distances, KnnOptions(1, weight, temperature)))
    shares = np.exp(-(distances.astype(np.float64) - distances.min()) / temperature)
    expected = (1 - weight) * p
    for value, share in zip(values, shares / shares.sum(), strict=True):
        expected[value] += weight * share
    np.testing.assert_allclose(mixed, expected, rtol=1e-6, atol=1e-9)
    assert mixed.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"k": 0}, "k,"),
        ({"k": -3}, "k,"),
        ({"k": 10**6}, "k,"),
        ({"weight": -0.1}, "weight"),
        ({"weight": 1.1}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"stride": 0}, "stride"),
        ({"probes": 0}, "lists"),
    ],
)
def test_bad_knn_options_are_refused(options: dict[str, float], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        KnnOptions(**options)  # type: ignore[arg-type]


# -- decoding


class ToyModel:
    """Log-probabilities and hidden state are a function of the last three tokens, the state near an entry's key."""

    def __init__(self, keys: np.ndarray, seed: int) -> None:
        self.keys = keys
        self.seed = seed
        self.tokens: list[int] = [3]

    def step(self, token: int) -> tuple[np.ndarray, np.ndarray]:
        self.tokens.append(token)
        rng = np.random.default_rng([self.seed, *self.tokens[-3:]])
        hidden = self.keys[rng.integers(len(self.keys))] + rng.standard_normal(self.keys.shape[1]) / 20
        return np.log(rng.dirichlet(np.ones(VOCABULARY))), hidden.astype(np.float32)


def decode(decoder: KnnDecoder, model: ToyModel, pending: int, most: int, stops: frozenset[int]) -> list[int]:
    """Up to ``most`` tokens, the last of them a stop if one comes: the model runs row by row and is cut back."""
    tokens: list[int] = []
    while len(tokens) < most and not stops.intersection(tokens[-1:]):
        read = len(model.tokens)
        token: int | None = tokens[-1] if tokens else pending
        while token is not None:
            token = decoder.guess(*model.step(token), len(model.tokens))
        decoder.verify()
        found = decoder.settle()
        del model.tokens[read + len(found) :]
        tokens += found
    return tokens


def test_knn_strides_follow_what_guesses_and_searches_cost() -> None:
    def strides(fixed: int | None = None) -> StrideScheduler:
        return StrideScheduler(SpeculationOptions(fixed, longest=LONGEST_STRIDE), prior=PRIOR)

    one = strides()
    one.guessed(1, 0.004)
    one.searched(1, 0.065)
    first = one.best()
    assert 5 <= first <= 20
    for _ in range(5):
        one.record(first, first)
    assert one.best() > first
    other = strides()
    other.guessed(1, 0.004)
    other.searched(1, 0.065)
    for _ in range(5):
        other.record(0, first)
    assert other.expected == pytest.approx(4.5 / 10)
    assert other.best() < first
    cheap = strides()
    cheap.guessed(1, 0.004)
    cheap.searched(1, 0.0)
    assert cheap.best() == 1
    assert strides(7).best() == 7
    assert not strides().informed
    assert strides(7).informed


def greedy(log_p: np.ndarray, _position: int) -> int:
    return int(log_p.argmax())


def sampled(log_p: np.ndarray, position: int) -> int:
    return int((log_p + np.random.default_rng([7, position]).gumbel(size=len(log_p))).argmax())


@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["exact", "lists"]),
    k=st.sampled_from([1, 2, 7, 40]),
    weight=st.sampled_from([0.0, 0.25, 0.9, 1.0]),
    stride=st.sampled_from([None, 1, 2, 3, 5, 16]),
    choose=st.sampled_from([greedy, sampled]),
    most=st.integers(1, 60),
    stops=st.frozensets(st.integers(0, VOCABULARY - 1), max_size=2),
)
def test_knn_speculation_gives_the_sequential_tokens(
    decoding: Datastore,
    seed: int,
    kind: str,
    k: int,
    weight: float,
    stride: int | None,
    choose: Callable[[np.ndarray, int], int],
    most: int,
    stops: frozenset[int],
) -> None:
    search = ExactSearch(decoding) if kind == "exact" else ListSearch(decoding, 3)

    def run(speculate: bool) -> tuple[list[int], list[int], KnnDecoder]:
        model = ToyModel(decoding.keys, seed)
        decoder = KnnDecoder(search, choose, KnnOptions(k, weight, 1.0, speculate, stride), most, stops)
        return decode(decoder, model, 5, most, stops), model.tokens, decoder

    tokens, _, sequential = run(False)
    again, read, speculative = run(True)
    assert again == tokens
    assert read == [3, 5, *tokens[:-1]]
    assert len(tokens) == most or tokens[-1] in stops
    assert sequential.stats.lookups == sequential.stats.rounds == len(tokens)
    stats = speculative.stats
    assert stats.tokens == len(tokens)
    assert stats.matched <= stats.guessed <= stats.lookups


@pytest.fixture(scope="module")
def decoding(tmp_path_factory: pytest.TempPathFactory) -> Datastore:
    return make_store(tmp_path_factory.mktemp("decoding") / "s", *random_entries(400, 6), lists=8)


def test_knn_speculation_saves_searches_and_says_so(decoding: Datastore) -> None:
    """Where the cache holds what is needed, many tokens share a search; wrong guesses are rolled back."""
    sizes, search = [], ExactSearch(decoding)

    def counted(queries: np.ndarray, k: int) -> knn_search.Neighbours:
        sizes.append(len(queries))
        return search(queries, k)

    counted.store = decoding  # type: ignore[attr-defined]
    model = ToyModel(decoding.keys, 1)
    decoder = KnnDecoder(counted, greedy, KnnOptions(4, 0.3, 1.0, stride=8), 200)  # type: ignore[arg-type]
    tokens = decode(decoder, model, 5, 200, frozenset())
    figures = decoder.stats.as_dict()
    assert len(tokens) == 200
    assert len(sizes) == figures["rounds"] < 100
    assert max(sizes) == 8
    assert 0 < figures["rollbacks"] < figures["rounds"]
    assert 0.3 < figures["acceptance"] < 1
    assert figures["amdahl_ceiling"] > 1
    assert figures["a_s"] > 0
    assert figures["b_s"] > 0


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=12), max_size=8), st.integers(5, 60))
def test_the_knn_cache_holds_hits_and_what_follows(rounds: list[list[int]], capacity: int) -> None:
    store = CACHED()
    cache = KnnCache(store, capacity)  # type: ignore[arg-type]
    wanted: set[int] = set()
    for hits in rounds:
        cache.add(np.array(hits), prefetch=2)
        found, _ = cache.nearest(store.keys[hits[0]], capacity)
        assert len(found) == len(cache) == len(set(found.tolist())) <= capacity
        wanted |= {hit + i for hit in hits for i in range(3) if hit + i < 100}
        if len(wanted) <= capacity:  # nothing had to make room
            assert set(found.tolist()) == wanted
        else:
            assert len(cache) == capacity


class CACHED:
    """The part of a datastore that a cache reads."""

    def __init__(self) -> None:
        self.keys = random_entries(100, 9)[0]
        self.norms = (self.keys**2).sum(1)
        self.identity = identity()

    def floats(self, rows: np.ndarray) -> np.ndarray:
        return self.keys[rows]

    def __len__(self) -> int:
        return 100


# -- the files


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.booleans()), min_size=1, max_size=6))
def test_a_knn_store_that_was_interrupted_ends_the_same(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, bool, bool]]
) -> None:
    """Committed parts survive a crash, others are written again, and the files are those of one go."""
    folder = tmp_path_factory.mktemp("resume")
    keys, values = random_entries(60, 8)
    whole = make_store(folder / "whole", keys[:50], values[:50])
    builder = StoreBuilder(folder / "parts", identity())
    for size, commit, crash in [*parts, (50, True, False)]:
        for document, first, last in (("a", 1), 0, 25), (("b", 3), 25, 50):
            start = first + builder.tokens_read(document)
            end = min(start + size, last)
            if start < end:
                builder.add(document, keys[start:end], values[start:end])
            if end < last:
                break
        if commit:
            builder.commit()
        if crash:
            builder.close()
            builder = StoreBuilder(folder / "parts", identity())
    assert not (folder / "parts").exists()
    again = Datastore.open(builder.finish())
    np.testing.assert_array_equal(again.keys, whole.keys)
    np.testing.assert_array_equal(again.values, whole.values)
    assert again.documents == [("a", 1), ("b", 3)]
    assert again.document_of(np.array([0, 24, 25, 49])) == [("a", 1)] * 2 + [("b", 3)] * 2


@pytest.mark.crash
@pytest.mark.parametrize("name", ["knn.data", "knn.written"])
def test_a_killed_knn_build_ends_the_same(name: str, tmp_path: Path) -> None:
    keys, values = random_entries(50, 8)
    np.savez(tmp_path / "entries.npz", keys=keys, values=values)
    program = (
        "import sys, numpy as np\nfrom pathlib import Path\n"
        "from retrieval.knn.store import StoreBuilder, StoreIdentity\n"
        f"found = np.load(sys.argv[1])\nbuilder = StoreBuilder(Path(sys.argv[2]), {identity()!r})\n"
        "builder.add(('a', 1), found['keys'][:25], found['values'][:25])\nbuilder.commit()\n"
        "builder.add(('b', 3), found['keys'][25:], found['values'][25:])\nbuilder.finish()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "entries.npz"), str(tmp_path / "killed")]
    killed = subprocess.run(command, env={**os.environ, "FOLIO_FAILPOINT": f"{name}:{2 if name == 'knn.data' else 1}"})
    assert killed.returncode == EXIT_CODE
    assert not (tmp_path / "killed").exists()
    builder = StoreBuilder(tmp_path / "killed", identity())
    for document, first in (("a", 1), 0), (("b", 3), 25):
        start = first + builder.tokens_read(document)
        if start < first + 25:
            builder.add(document, keys[start : first + 25], values[start : first + 25])
    again, whole = Datastore.open(builder.finish()), make_store(tmp_path / "whole", keys, values)
    np.testing.assert_array_equal(again.keys, whole.keys)
    np.testing.assert_array_equal(again.values, whole.values)
    assert again.documents == whole.documents


def test_another_knn_build_waits_its_turn(tmp_path: Path) -> None:
    first = StoreBuilder(tmp_path / "s", identity())
    with pytest.raises(StoreBusy, match="being built"):
        StoreBuilder(tmp_path / "s", identity())
    first.close()
    StoreBuilder(tmp_path / "s", identity()).close()


def test_a_knn_build_of_another_model_begins_anew(tmp_path: Path) -> None:
    builder = StoreBuilder(tmp_path / "s", identity())
    builder.add(("a", 1), *random_entries(5, 0))
    builder.commit()
    builder.close()
    assert StoreBuilder(tmp_path / "s", identity(key_type="float16")).entries == 0


@pytest.mark.parametrize("name", ["keys.bin", "values.bin", "norms.bin", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "lost"])
def test_a_damaged_knn_store_is_refused(name: str, damage: str, tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", *random_entries(30, 0))
    path = store.folder / name
    data = bytearray(path.read_bytes())
    if damage == "lost":
        path.unlink()
    else:
        if damage == "flip":
            data[len(data) // 2] ^= 0x55
        path.write_bytes(data[: -7 if damage == "cut" else None])
    with pytest.raises((IndexCorrupt, NotFound), match="index build --knn"):
        Datastore.open(store.folder)


def test_an_empty_knn_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="ingest documents first"):
        StoreBuilder(tmp_path / "s", identity()).finish()
    assert not (tmp_path / "s").exists()


def test_more_lists_than_knn_entries_are_refused(tmp_path: Path) -> None:
    builder = StoreBuilder(tmp_path / "s", identity())
    builder.add(("a", 1), *random_entries(5, 0))
    with pytest.raises(InvalidRequest, match="5 entries"):
        builder.finish(lists=6)
    store = Datastore.open(builder.finish())
    with pytest.raises(InvalidRequest, match="no lists"):
        ListSearch(store, 2)


@pytest.mark.parametrize("wrong", ["model", "tokenizer", "dim"])
def test_a_knn_store_of_another_model_is_refused(wrong: str, tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", *random_entries(30, 0))
    own = {"model": "model", "tokenizer": "tokenizer", "dim": DIM}
    store.check_model(**own)  # type: ignore[arg-type]
    with pytest.raises(DatastoreMismatch, match="made with"):
        store.check_model(**own | {wrong: "other" if wrong != "dim" else 8})  # type: ignore[arg-type]


def test_a_removed_knn_store_serves_to_the_end(tmp_path: Path) -> None:
    """An answer finishes on the datastore that it began with."""
    store = make_store(tmp_path / "scope-1", *random_entries(300, 0))
    queries = random_entries(4, 1)[0]
    before = ExactSearch(store)(queries, 5)
    make_store(tmp_path / "scope-2", *random_entries(10, 2))
    assert sweep(tmp_path, "scope", ["scope-2"]) == ["scope-1"]
    np.testing.assert_array_equal(ExactSearch(store)(queries, 5).entries, before.entries)


@given(st.integers(1, 100), st.integers(2, 20), st.data())
def test_knn_windows_cover_every_token_once(count: int, window: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, window - 1))
    done = data.draw(st.integers(0, count))
    kept = []
    for start, first, end in windows(count, done, window, overlap):
        assert 0 <= start <= first < end
        assert end - start <= window
        assert first - start == min(first, overlap)
        kept += range(first, end)
    assert kept == list(range(done, count))


def test_knn_manifest_of_another_format(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", *random_entries(30, 0))
    manifest = json.loads((store.folder / knn_store.MANIFEST).read_text())
    (store.folder / knn_store.MANIFEST).write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(IndexCorrupt, match="format"):
        Datastore.open(store.folder)
