"""The suffix array against brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.errors import InvalidRequest
from retrieval.index.token_store import END, SEPARATOR, CorpusTokenizer, TokenStore, save_array, suffix_array
from retrieval.types import Upload

documents_ = st.lists(st.lists(st.integers(0, 3), max_size=30), max_size=5)


@settings(deadline=None)  # the first call compiles
@given(documents_)
def test_suffixes_are_sorted(documents: list[list[int]]) -> None:
    store = TokenStore.build(documents, "t")
    tokens = store.tokens.tolist()
    found = suffix_array(store.tokens).tolist()
    assert sorted(found) == list(range(len(tokens)))
    assert [tokens[i : i + 64] for i in found] == sorted(tokens[i : i + 64] for i in range(len(tokens)))


def test_long_repeats_are_sorted_to_their_depth() -> None:
    rng = np.random.default_rng(0)
    text = rng.integers(0, 50, 400)
    store = TokenStore.build([np.concatenate([text, text, rng.integers(0, 2, 300), np.zeros(200)])], "t")
    tokens = store.tokens.tolist()
    order = suffix_array(store.tokens)
    assert sorted(order.tolist()) == list(range(len(tokens)))
    windows = [tokens[i : i + 64] for i in order]
    assert windows == sorted(windows)
    with pytest.raises(InvalidRequest, match="below"):
        suffix_array(np.array([1 << 22], dtype=np.uint32))


def brute_force(documents: list[list[int]], context: list[int], max_match: int, min_match: int, length: int):
    for match in range(min(max_match, len(context)), min_match - 1, -1):
        pattern = context[len(context) - match :]
        rows = [
            (document[i + match : i + match + length] + [END] * length)[:length]
            for document in documents
            for i in range(len(document) - match)
            if document[i : i + match] == pattern
        ]
        if rows:
            return match, sorted(rows)
    return 0, []


@settings(deadline=None)  # the first call compiles
@given(documents_, st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 3), st.integers(0, 6))
def test_continuations_are_those_of_brute_force(
    documents: list[list[int]], context: list[int], min_match: int, more: int
) -> None:
    store = TokenStore.build(documents, "t")
    match, rows = store.continuations(context, min_match + more, min_match, 1000, 4)
    assert (match, sorted(rows.tolist())) == brute_force(documents, context, min_match + more, min_match, 4)


def test_occurrences_are_bounded_and_spread() -> None:
    store = TokenStore.build([[7, i] for i in range(100)], "t")
    match, rows = store.continuations([1, 2, 7], 8, 1, 10, 3)
    assert match == 1
    assert rows.shape == (10, 3)
    assert np.all(rows[:, 1:] == END)
    assert len(set(rows[:, 0].tolist())) == 10


def test_documents_that_are_not_allowed_are_not_seen() -> None:
    store = TokenStore.build([[1, 2, 3], [1, 2, 4], [9, 1, 2, 5]], "t")
    seen = store.restricted(np.array([True, False, True]))
    assert sorted(seen.continuations([9, 1, 2], 2, 1, 10, 1)[1].ravel().tolist()) == [3, 5]
    assert seen.restricted(np.zeros(3, dtype=bool)).continuations([1], 1, 1, 10, 1)[0] == 0


def test_bad_arguments_are_refused() -> None:
    store = TokenStore.build([[1]], "t")
    for arguments in ((0, 1, 1, 1), (65, 1, 1, 1), (2, 3, 1, 1), (2, 1, 0, 1), (2, 1, 1, 0)):
        with pytest.raises(InvalidRequest, match="min_match"):
            store.continuations([1], *arguments)


def test_saved_and_mapped(tmp_path: Path) -> None:
    store = TokenStore.build([[5, 6, 7], [6, 7, 8]], "t")
    for name, array in store.arrays().items():
        with (tmp_path / name).open("wb") as file:
            save_array(file.write, array)
    mapped = TokenStore.read(tmp_path, "t")
    assert mapped.continuations([6, 7], 2, 1, 9, 1)[1].tolist() == [[8]]
    assert int(mapped.tokens[-1]) == int(SEPARATOR)


def test_it_is_part_of_a_generation_and_follows_the_documents(library) -> None:
    library.set_tokenizer(CorpusTokenizer("bytes", lambda text: list(text.encode())))
    mine, other = library.ingest([Upload("a.txt", b"The lock is blue."), Upload("b.txt", b"The lock is red.")])
    [foreign] = library.ingest([Upload("c.txt", b"The lock is gold.")], owner="eve")
    library.build_index()

    def after(text: str, owner: str) -> set[str]:
        rows = library.token_store(owner).continuations(list(text.encode()), 16, 4, 10, 3)[1]
        return {bytes(row[row >= 0].tolist()).decode() for row in rows}

    assert after("the lock is ", "local") == {"blu", "red"}
    assert after("the lock is ", "eve") == {"gol"}
    assert library.token_store("local") is library.token_store("local")  # not made anew for every answer
    library.delete(other.id)
    assert after("the lock is ", "local") == {"blu"}
    library.set_tokenizer(CorpusTokenizer("other", lambda text: [len(text)]))
    assert library.token_store("local") is None
    library.build_index()
    assert library.token_store("local").tokenizer == "other"
    assert library.verify_index().problems == []
    assert foreign.status == mine.status == "ready"
