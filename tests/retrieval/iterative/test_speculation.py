"""RaLMSpec: the speculative loop writes what the sequential loop writes, whatever is guessed, and OS³ chooses well."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.errors import InvalidRequest, RetrieverFailed
from retrieval.index.dense import DenseIndex
from retrieval.index.sparse import SparseIndex
from retrieval.iterative.retrievers import DenseRetriever, SnapshotRetriever, SparseRetriever
from retrieval.iterative.speculation import IterativeRetrieval, RetrievalCache, Retriever, Stride, written
from retrieval.iterative.strides import (
    Experience,
    Experiences,
    SpeculationOptions,
    StrideScheduler,
    best_stride,
    expected_rate,
)
from retrieval.library import Library

DIM, CHUNKS, WORDS, K = 16, 300, 60, 4
WORD_VECTORS = np.random.default_rng(1).standard_normal((WORDS, DIM)).astype(np.float32)


def encode(texts: Sequence[str]) -> np.ndarray:
    """The mean of the words' vectors: queries that share most words are near."""
    sums = np.stack([WORD_VECTORS[[int(word) for word in text.split()]].sum(0) for text in texts])
    return (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)


def chunk_texts(duplicates: bool = True) -> list[str]:
    rng = np.random.default_rng(2)
    texts = [" ".join(map(str, rng.integers(WORDS, size=12))) for _ in range(CHUNKS)]
    return texts[: CHUNKS - 20] + texts[:20] if duplicates else texts  # equal scores: ties go to the lower id


def dense(factory: str) -> Retriever:
    ids = np.arange(CHUNKS, dtype=np.int64) * 3 + 7
    return DenseRetriever(DenseIndex.build(ids, encode(chunk_texts()), factory), encode)


RETRIEVERS: dict[str, Callable[[], Retriever]] = {
    "flat": lambda: dense("IDMap2,Flat"),
    "hnsw": lambda: dense("IDMap2,HNSW8"),
    "ivf": lambda: dense("IDMap2,IVF32,Flat"),
    "bm25": lambda: SparseRetriever(SparseIndex.build([text.split() for text in chunk_texts()])),
}


@pytest.fixture(scope="module", params=list(RETRIEVERS))
def retriever(request: pytest.FixtureRequest) -> Retriever:
    return RETRIEVERS[request.param]()


class Text:
    """A language model that is a hash: the next words depend on the chunk and on all words before."""

    def __init__(self, seed: int, most: int, ends: bool = True, drift: int = 6) -> None:
        self.seed, self.most, self.ends, self.drift = seed, most, ends, drift
        self.written = 0

    async def write(self, chunk: int, strides: Sequence[Stride]) -> Stride:
        await asyncio.sleep(0)
        self.written += 1
        tokens = written(strides)
        words, ended = list(tokens), False
        while len(words) < min(len(tokens) + K, self.most) and not ended:
            digest = hashlib.blake2b(f"{self.seed} {chunk} {words}".encode(), digest_size=8).digest()
            words.append(digest[0] % self.drift if digest[1] % 3 else digest[0] % WORDS)  # mostly a few words
            ended = self.ends and digest[2] % 40 == 0
        finish = "stop" if ended else "length" if len(words) == self.most else None
        return Stride(chunk, words[len(tokens) :], query_text(words), finish)


def query_text(tokens: Sequence[int]) -> str:
    return " ".join(map(str, [3, 1, 4, 1, 5, 9, 2, 6, *tokens][-8:]))


class Asking(Text):
    """As mode flare: strides of any length, each with a query of its own, which depends on the chunk as they do not."""

    async def write(self, chunk: int, strides: Sequence[Stride]) -> Stride:
        stride = replace(await super().write(chunk % 3, strides), chunk=chunk)
        length, *_ = hashlib.blake2b(f"{self.seed} {stride.tokens}".encode(), digest_size=8).digest()
        asked = hashlib.blake2b(f"{chunk} {stride.tokens}".encode(), digest_size=8).digest()
        kept = stride.tokens[: 1 + length % K]
        query = query_text([asked[1] % self.drift if asked[2] % 2 else asked[1] % WORDS])
        return replace(stride, tokens=kept, query=query, finish=None if kept != stride.tokens else stride.finish)


class Anew(Text):
    """As mode iter-retgen: the whole text again, until it stays as it is or has been written eight times."""

    async def write(self, chunk: int, strides: Sequence[Stride]) -> Stride:
        stride = await super().write(chunk % self.drift if self.seed % 2 else chunk, [])
        settled = len(strides) == 7 or bool(strides and strides[-1].tokens == stride.tokens)
        return replace(stride, chunk=chunk, finish="stop" if settled else None, whole=True)


WRITERS: dict[str, type[Text]] = {"iterative": Text, "flare": Asking, "iter-retgen": Anew}


async def finished(
    retriever: Retriever, text: Text, options: SpeculationOptions, speculate: bool
) -> IterativeRetrieval:
    """A finished text; what was yielded is what was kept."""
    loop = IterativeRetrieval(retriever, text.write, query_text([]), options)
    assert len(await loop.begin())
    strides = [stride async for stride in (loop.speculative() if speculate else loop.sequential())]
    assert written(strides) == loop.tokens
    assert [bool(stride.finish) for stride in strides] == [False] * (len(strides) - 1) + [True]
    assert loop.stats.strides == len(strides)
    return loop


@pytest.mark.parametrize("mode", WRITERS)
@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    most=st.integers(1, 90),
    stride=st.sampled_from([None, 1, 2, 3, 7]),
    prefetch=st.sampled_from([1, 2, 20]),
    overlap=st.booleans(),
)
def test_speculation_gives_the_strides_of_the_sequential_loop(
    retriever: Retriever, mode: str, seed: int, most: int, stride: int | None, prefetch: int, overlap: bool
) -> None:
    options = SpeculationOptions(stride=stride, prefetch=prefetch, overlap=overlap)

    async def both() -> None:
        one = await finished(retriever, WRITERS[mode](seed, most), options, speculate=False)
        other = await finished(retriever, WRITERS[mode](seed, most), options, speculate=True)
        assert one.strides == other.strides
        assert other.stats.accepted <= other.stats.guesses

    asyncio.run(both())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 60), k=st.integers(1, 20))
def test_a_cache_ranks_as_the_retriever_does(retriever: Retriever, seed: int, count: int, k: int) -> None:
    """Among chunks that hold the true best, the cache's best is that one; a batch finds what single queries find."""
    rng = np.random.default_rng(seed)
    queries = [retriever.query(" ".join(map(str, rng.integers(WORDS, size=8)))) for _ in range(4)]
    found = retriever.search(queries, k)
    for query, ids in zip(queries, found, strict=True):
        (alone,) = retriever.search([query], k)
        assert ids.tolist() == alone.tolist()
        others = rng.choice(retriever.search([query], CHUNKS)[0], size=count)
        cached = np.union1d(ids, others)
        scores = retriever.score(query, cached)
        assert cached[np.lexsort((cached, -scores))][0] == ids[0]
        assert retriever.score(query, cached[:1])[0] == scores[0]


def test_a_cache_forgets_what_old_searches_brought() -> None:
    retriever = RETRIEVERS["flat"]()
    query = retriever.query("1 2 3")
    best, *others = retriever.search([query], RetrievalCache.KEPT + 1)[0]
    cache = RetrievalCache(retriever)
    assert cache.best(query) is None
    cache.insert(np.array([best]))
    for other in others:
        assert cache.best(query) == best
        cache.insert(np.array([other]))
    assert cache.best(query) == others[0]


def test_a_batch_finds_in_a_crowd_what_single_queries_find() -> None:
    """Chunks that are nearer to one another than what a product in bfloat16 rounds away."""
    rng = np.random.default_rng(0)
    crowd = (WORD_VECTORS[0] + 0.02 * rng.standard_normal((2000, DIM))).astype(np.float32)
    crowd /= np.linalg.norm(crowd, axis=1, keepdims=True)
    retriever = DenseRetriever(DenseIndex.build(np.arange(2000), crowd, "IDMap2,Flat"), encode)
    queries = [retriever.query(f"0 {word}") for word in range(8)]
    for query, ids in zip(queries, retriever.search(queries, 10), strict=True):
        assert ids.tolist() == retriever.search([query], 10)[0].tolist()


def test_wrong_guesses_are_written_again() -> None:
    """The corpus is such that the cache is wrong at times; without that the property above would say little."""
    loops = [
        asyncio.run(finished(RETRIEVERS["flat"](), Text(seed, 80, ends=False), SpeculationOptions(stride=3), True))
        for seed in range(5)
    ]
    assert any(loop.stats.accepted < loop.stats.guesses for loop in loops)
    assert any(loop.stats.accepted > 0 for loop in loops)
    assert all(loop.stats.written > loop.stats.strides for loop in loops if loop.stats.accepted < loop.stats.guesses)


def test_every_window_ends_with_a_stride_that_is_not_guessed() -> None:
    """Three strides to a search where all guesses are right, two of them guessed; with one, nothing is."""
    everything = SpeculationOptions(stride=3, prefetch=CHUNKS)
    loop = asyncio.run(finished(RETRIEVERS["flat"](), Text(3, 13 * K, ends=False), everything, True))
    assert (loop.stats.strides, loop.stats.written, loop.stats.searches) == (13, 13, 5)
    assert (loop.stats.guesses, loop.stats.accepted, loop.stats.windows) == (8, 8, [3, 3, 3, 3])
    loop = asyncio.run(finished(RETRIEVERS["flat"](), Text(3, 80), SpeculationOptions(stride=1), True))
    assert loop.stats.guesses == 0
    assert loop.stats.written == loop.stats.strides == loop.stats.searches


class Deaf(Text):
    """A text that does not depend on its chunk, but drifts as others do."""

    async def write(self, chunk: int, strides: Sequence[Stride]) -> Stride:
        return replace(await super().write(0, strides), chunk=chunk)


def test_what_stands_behind_a_wrong_guess_is_kept_where_the_tokens_stay_the_same() -> None:
    """Each wrong guess is written again and nothing else, and every search decides about its whole window."""
    loop = asyncio.run(finished(RETRIEVERS["flat"](), Deaf(1, 120, ends=False), SpeculationOptions(stride=6), True))
    plain = asyncio.run(finished(RETRIEVERS["flat"](), Deaf(1, 120, ends=False), SpeculationOptions(), False))
    assert loop.tokens == plain.tokens
    wrong = loop.stats.guesses - loop.stats.accepted
    assert wrong > 1
    assert loop.stats.written == loop.stats.strides + wrong
    assert loop.stats.strides == 30 == 1 + sum(loop.stats.windows)
    assert loop.stats.searches == 1 + 5


@pytest.mark.parametrize("name", list(RETRIEVERS))
def test_queries_are_the_more_alike_the_more_they_share(name: str) -> None:
    retriever = RETRIEVERS[name]()
    query, near, far = (retriever.query(text) for text in ("1 2 3 4 5 6", "2 3 4 5 6 7", "31 32 33 34 35 36"))
    assert retriever.likeness(query, query) == pytest.approx(1, abs=1e-5)
    assert retriever.likeness(query, near) > retriever.likeness(query, far)


@given(
    a=st.floats(1e-4, 1), b=st.floats(1e-4, 1), gamma=st.floats(0, 1), overlap=st.booleans(), longest=st.integers(1, 24)
)
def test_the_stride_is_the_best_of_all(a: float, b: float, gamma: float, overlap: bool, longest: int) -> None:
    def rate(s: int) -> float:
        """Section 4 of the paper, term by term."""
        verified = s if gamma == 1 else (1 - gamma**s) / (1 - gamma)
        if not overlap:
            return verified / (s * a + b)
        return verified / (gamma**s * ((s - 1) * a + max(a, b)) + (1 - gamma**s) * (s * a + b))

    chosen = best_stride(a, b, gamma, overlap, longest)
    assert rate(chosen) == pytest.approx(max(rate(s) for s in range(1, longest + 1)), rel=1e-6)
    assert expected_rate(chosen, a, b, gamma, overlap) == pytest.approx(rate(chosen), rel=1e-6)


def scheduler_of(a: float, b: float, overlap: bool = False, experience: Experience | None = None) -> StrideScheduler:
    """One that has seen a guess and a search cost so much."""
    scheduler = StrideScheduler(SpeculationOptions(overlap=overlap), experience)
    scheduler.a = a
    scheduler.searched(1, b)
    return scheduler


def window(scheduler: StrideScheduler, *likenesses: float) -> int:
    """How many strides the next window has, whose queries are so like, the last of them for ever."""
    scheduler.open()
    size = 1
    while scheduler.take(likenesses[min(size, len(likenesses)) - 1] if likenesses else 1.0):
        size += 1
    return size


def seen(scheduler: StrideScheduler, right: int, wrong: int, likeness: float = 1.0) -> None:
    """So many guesses, spread evenly, in windows of eight."""
    for number in range(right + wrong):
        scheduler.turned_out(likeness, number * wrong // (right + wrong) == (number + 1) * wrong // (right + wrong))
    for _ in range(5):
        scheduler.record(round(8 * right / (right + wrong)), 8)


@given(
    a=st.floats(1e-3, 1),
    b=st.floats(1e-3, 1),
    each=st.floats(0, 0.1),
    wrong=st.integers(0, 100),
    overlap=st.booleans(),
)
def test_guesses_that_are_equally_good_make_the_window_of_os3(
    a: float, b: float, each: float, wrong: int, overlap: bool
) -> None:
    """Or one that brings as much; where searches overlap with writing, one that brings almost as much."""
    prior = (101.0 - wrong, float(wrong))  # and no outcome: all chances are equal
    scheduler = StrideScheduler(SpeculationOptions(overlap=overlap), prior=prior)
    for size in (1, 16):
        scheduler.searched(size, b + each * size)
        scheduler.guessed(size, a * size)

    def rate(size: int) -> float:
        return expected_rate(size, a, b + each * size, prior[0] / sum(prior), overlap)

    assert rate(window(scheduler)) == pytest.approx(rate(scheduler.best()), rel=0.1 if overlap else 1e-6)


def test_the_chance_of_a_guess_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sorts what earlier guesses came to."""
    scheduler = scheduler_of(0.01, 0.1)
    asked: list[float] = []
    chance = Experience.chance

    def counted(experience: Experience, likeness: float, prior: tuple[float, float]) -> float:
        asked.append(likeness)
        return chance(experience, likeness, prior)

    monkeypatch.setattr(Experience, "chance", counted)
    size = window(scheduler)
    assert size > 2
    assert len(asked) == size  # of every guess, and of the one that did not pay


def test_guesses_made_ahead_count_for_the_window() -> None:
    def size(scheduler: StrideScheduler, ahead: int) -> int:
        scheduler.open()
        for _ in range(ahead):
            scheduler.made(1.0)
        return ahead + 1 + sum(1 for _ in iter(lambda: scheduler.take(1.0), False))

    assert size(scheduler_of(0.01, 0.1), 2) == window(scheduler_of(0.01, 0.1)) > 3
    fixed = StrideScheduler(SpeculationOptions(5))
    assert (size(fixed, 3), size(fixed, 0)) == (5, 5)


def test_the_scheduler_follows_what_it_sees() -> None:
    scheduler = scheduler_of(0.01, 0.1)
    assert scheduler.gamma is None
    sizes = [window(scheduler)]
    for _ in range(12):
        scheduler.record(matched=4, guessed=4)
        for _ in range(4):
            scheduler.turned_out(1.0, True)
        sizes.append(window(scheduler))
    assert scheduler.gamma == 1
    assert sizes[0] < 8 < min(sizes[1:])  # all right: longer
    assert sizes[-1] == 16
    for _ in range(5):
        scheduler.record(matched=0, guessed=4)
        for _ in range(6):
            scheduler.turned_out(1.0, False)
    assert scheduler.gamma == 0
    assert window(scheduler) == 1
    scheduler.record(matched=3, guessed=4)
    assert scheduler.gamma == pytest.approx(3 / 8)


def test_a_cheap_search_comes_first() -> None:
    """Guessing well in nine of ten cases does not repay a search that takes a hundredth of the writing."""
    scheduler = scheduler_of(0.1, 0.001)
    assert window(scheduler) == 1
    seen(scheduler, 90, 10)
    assert window(scheduler) == 1


def test_a_query_that_has_drifted_is_searched_for_and_no_other() -> None:
    """Guesses on queries near the last are right, those on far ones wrong: on the average nothing would be guessed."""
    scheduler = scheduler_of(0.05, 0.02)
    for _ in range(40):
        scheduler.turned_out(0.9, True)
        scheduler.turned_out(0.3, False)
    seen(scheduler, 0, 8, likeness=0.3)
    assert window(scheduler, 0.9, 0.9, 0.9, 0.3) == 4
    assert window(scheduler, 0.3) == 1
    mixed = scheduler_of(0.05, 0.02)
    seen(mixed, 40, 40)
    assert window(mixed, 0.9) == 1


def test_few_outcomes_tell_near_queries_from_far_ones() -> None:
    experience, prior = Experience(), (1.0, 0.5)
    for _ in range(6):
        experience.turned_out(0.9, True)
        experience.turned_out(0.3, False)
    assert experience.chance(0.8, prior) == pytest.approx(7 / 7.5)
    assert experience.chance(0.4, prior) == pytest.approx(1 / 7.5)


def test_a_new_text_begins_with_what_earlier_ones_have_shown() -> None:
    """A long window where guesses were right, none where they were wrong."""
    good, bad = Experience(), Experience()
    for experience, right in ((good, 80), (bad, 0)):
        earlier = scheduler_of(0.01, 0.1, experience=experience)
        earlier.guessed(1, 0.01)
        seen(earlier, right, 80 - right)
    assert window(scheduler_of(0.5, 0.1, experience=good)) == 16  # its own first stride, a prefill, says little
    assert window(scheduler_of(0.5, 0.1, experience=bad)) == 1
    assert sum(good.guesses) <= Experience.TRUSTED


@given(
    fixed=st.floats(0, 1),
    each=st.floats(0, 0.5),
    sizes=st.lists(st.integers(1, 16), max_size=12).map(lambda sizes: [*sizes, 2, 9]),
)
def test_the_cost_of_a_search_is_a_line_through_what_was_seen(fixed: float, each: float, sizes: list[int]) -> None:
    experience = Experience()
    for size in sizes:
        experience.searched(size, fixed + each * size)
        experience.guessed(size, 0.01 + 0.02 * size)
    assert experience.costs == pytest.approx((0.02, 0.01 + fixed, each), abs=1e-6)


def test_a_search_that_grows_with_its_batch_takes_shorter_windows() -> None:
    def size(each: float) -> int:
        scheduler = scheduler_of(0.01, 0.1)
        scheduler.guessed(1, 0.01)
        scheduler.searched(8, 0.1 + 7 * each)
        seen(scheduler, 70, 10)
        return window(scheduler)

    assert 1 < size(0.03) < size(0.0)


def test_experiences_are_kept_apart_and_bounded() -> None:
    experiences = Experiences()
    first = experiences.of("a")
    assert experiences.of("a") is first
    assert experiences.of("b") is not first
    for number in range(Experiences.REMEMBERED):
        experiences.of(number)
    assert experiences.of("a") is not first


class Slow:
    """A retriever whose searches take ``search_s``, without Python's lock, and fail ``failures`` times."""

    def __init__(self, search_s: float = 0.0, failures: int = 0) -> None:
        self.inner = RETRIEVERS["flat"]()
        self.search_s, self.failures, self.searches = search_s, failures, 0

    def query(self, text: str) -> Any:
        return self.inner.query(text)

    def search(self, queries: Sequence[Any], k: int) -> list[np.ndarray]:
        self.searches += 1
        if self.searches > 2 and self.failures:
            self.failures -= 1
            raise OSError("the disk is gone")
        time.sleep(self.search_s)
        return self.inner.search(queries, k)

    def score(self, query: Any, ids: np.ndarray) -> np.ndarray:
        return self.inner.score(query, ids)

    def likeness(self, query: Any, other: Any) -> float:
        return self.inner.likeness(query, other)


class SlowText(Text):
    """Writes one word for ever, so that every guess is right, and takes its time."""

    async def write(self, chunk: int, strides: Sequence[Stride]) -> Stride:
        await asyncio.sleep(0.02)
        words = [*written(strides), *[5] * K]
        return Stride(chunk, [5] * K, query_text(words), "length" if len(words) >= self.most else None)


def test_verification_overlaps_with_writing() -> None:
    """By the clock: twelve windows of a stride and a search of 20 ms each, one after the other or side by side."""

    def seconds(overlap: bool) -> float:
        options = SpeculationOptions(stride=1, overlap=overlap)
        began = time.perf_counter()
        loop = asyncio.run(finished(Slow(search_s=0.02), SlowText(0, 13 * K), options, True))
        assert loop.stats.strides == 13
        return time.perf_counter() - began

    assert min(seconds(True) for _ in range(3)) < 0.75 * min(seconds(False) for _ in range(3))


def test_a_failed_search_is_tried_once_more() -> None:
    plain = asyncio.run(finished(Slow(), Text(4, 60, ends=False), SpeculationOptions(), speculate=True))
    loop = asyncio.run(finished(Slow(failures=1), Text(4, 60, ends=False), SpeculationOptions(), speculate=True))
    assert loop.tokens == plain.tokens
    assert (loop.stats.retries, plain.stats.retries) == (1, 0)


@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize(
    ("broken", "reason"), [(Slow(failures=9), "the disk is gone"), (Slow(search_s=0.2), "within 0.05 s")]
)
def test_a_retriever_that_stays_broken_ends_the_text(speculate: bool, broken: Slow, reason: str) -> None:
    """What was yielded before is the beginning of the whole text."""
    options = SpeculationOptions(timeout_s=0.05 if broken.search_s else 30)
    whole = asyncio.run(finished(Slow(), Text(4, 60, ends=False), SpeculationOptions(), speculate=False)).tokens
    got: list[int] = []

    async def go() -> None:
        loop = IterativeRetrieval(broken, Text(4, 60, ends=False).write, query_text([]), options)
        await loop.begin()
        async for stride in loop.speculative() if speculate else loop.sequential():
            got.extend(stride.tokens)

    with pytest.raises(RetrieverFailed, match=reason):
        asyncio.run(go())
    assert got == whole[: len(got)]


@pytest.mark.parametrize("option", ["stride", "prefetch", "longest", "timeout_s"])
def test_options_above_zero(option: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{option} must be above 0, not 0"):
        replace(SpeculationOptions(), **{option: 0})


@pytest.mark.parametrize("mode", ["hybrid", "dense", "sparse"])
def test_a_library_is_a_retriever(library: Library, tmp_path: Path, mode: Any) -> None:
    """Chunks of the index and of the journal, by the library's own ranking, and by that of the moment it began."""
    from conftest import sentences_about

    (tmp_path / "a.txt").write_text(sentences_about("harbour", 200))
    library.ingest([tmp_path / "a.txt"])
    library.build_index()
    (tmp_path / "b.txt").write_text(sentences_about("meadow", 30))
    library.ingest([tmp_path / "b.txt"])
    retriever: SnapshotRetriever = library.retriever(mode=mode)
    question = "which lantern stands at the meadow and which at the harbour"
    query = retriever.query(question)
    ids = retriever.search([query, retriever.query("another violin")], 8)[0]
    hits = library.search(question, 8, mode=mode).hits
    assert ids.tolist() == [hit.chunk_id for hit in hits]
    assert retriever.score(query, ids).tolist() == [hit.score for hit in hits]
    (tmp_path / "c.txt").write_text(question)
    library.ingest([tmp_path / "c.txt"])
    assert library.search(question, 8, mode=mode).hits[0].name == "c.txt"
    assert retriever.search([query], 8)[0].tolist() == ids.tolist()
