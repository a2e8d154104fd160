"""What each source guesses, against brute force."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drafters.base import RequestState, TopSuccessors
from drafters.calibration import Calibration
from drafters.models.rag import select_chunks
from drafters.options import DatastoreOptions, PromptLookupOptions, RecyclingOptions, SuffixOptions
from drafters.sources.automaton import SEPARATOR, SuffixAutomaton
from drafters.sources.datastore import DatastoreDrafter, count_prefixes
from drafters.sources.prompt_lookup import PromptLookup
from drafters.sources.recycling import Recycling, SuccessorTable
from drafters.sources.suffix import DocumentAutomata, Suffix, prior_cells
from drafters.tree import DraftTree
from drafters.verify import Verdict

texts = st.lists(st.integers(0, 3), min_size=1, max_size=50)


def state_of(tokens: list[int], **more) -> RequestState:
    return RequestState("r", list(tokens), len(tokens), **more)


@given(texts)
def test_automaton_knows_every_substring_and_its_count(text):
    automaton = SuffixAutomaton(2)  # grows on the way
    for token in text:
        automaton.append([token])
    count = Counter(tuple(text[i:j]) for i in range(len(text)) for j in range(i + 1, len(text) + 1))
    for substring, places in count.items():
        state, matched = automaton.walk(substring)
        assert matched == len(substring)
        assert automaton._count[state] == places
    longest = max(n for n in range(len(text)) if n == 0 or count[tuple(text[len(text) - n :])] > 1)
    assert automaton.repeated()[1] == longest


@given(texts, texts)
def test_automaton_walk_keeps_the_longest_match(text, read):
    automaton = SuffixAutomaton()
    automaton.append(text)
    joined = {tuple(text[i:j]) for i in range(len(text)) for j in range(i, len(text) + 1)}
    match = (0, 0)
    for i, token in enumerate(read):
        match = automaton.walk([token], match)
        longest = max(n for n in range(i + 2) if tuple(read[i + 1 - n : i + 1]) in joined)
        assert match[1] == longest
    assert automaton.walk(read) == match


@given(texts, st.integers(1, 12))
def test_suffix_guesses_are_continuations_in_the_text(text, budget):
    drafter = Suffix(Calibration(), DocumentAutomata(), SuffixOptions(min_score=0.0))
    state = state_of(text)
    drafter.start(state)
    tree = drafter.propose(state, budget)
    assert len(tree) <= budget
    for node in range(len(tree)):
        path = tuple(int(tree.tokens[i]) for i in tree.path_to(node))
        assert is_continuation(path, tuple(text)), (text, path)


def is_continuation(path: tuple[int, ...], text: tuple[int, ...]) -> bool:
    """Whether the path follows the text's last token somewhere in it, or does so up to the text's end and then goes on
    as another continuation."""
    copied = (text[-1], *path)
    if any(text[i : i + len(copied)] == copied for i in range(len(text))):
        return True
    ends = (n for n in range(1, len(path)) if text[-n - 1 :] == copied[: n + 1])
    return any(is_continuation(path[n:], text) for n in ends)


@pytest.mark.parametrize("period", [1, 2, 5])
def test_suffix_copies_a_text_that_repeats_itself_over_itself(period):
    drafter = Suffix(Calibration(), DocumentAutomata(), SuffixOptions(min_score=0.0))
    loop = list(range(period))
    state = state_of([90, 91, *loop, *loop, *loop])
    drafter.start(state)
    tree = drafter.propose(state, 4 * period)
    deepest = tree.path_to(int(np.argmax(tree.depths[1:])))
    assert [int(tree.tokens[node]) for node in deepest] == 4 * loop


@pytest.mark.parametrize(("least", "starts", "expected"), [(1, 3, {10, 20, 30}), (2, 3, {10, 20}), (1, 2, {10, 20})])
def test_the_root_has_children_of_the_match_and_of_its_shorter_ends(least, starts, expected):
    drafter = Suffix(Calibration(), DocumentAutomata(), SuffixOptions(min_score=0.0, min_match=least), starts=starts)
    state = state_of([1, 2, 3, 10, 90, 2, 3, 20, 91, 3, 30, 92, 1, 2, 3])
    drafter.start(state)
    tree = drafter.propose(state, 64)
    assert set(tree.tokens[tree.parents == -1].tolist()) == expected


def test_a_shorter_match_is_trusted_less():
    drafter = Suffix(Calibration(), DocumentAutomata(), SuffixOptions(min_score=0.0))
    state = state_of([*range(10, 16), 50, 90, 15, 60, 91, *range(10, 16)])
    drafter.start(state)
    tree = drafter.propose(state, 64)
    cells = {int(tree.tokens[node]): int(tree.features[node]) for node in np.flatnonzero(tree.parents == -1)}
    length = {token: cell // 6 for token, cell in cells.items()}
    assert length == {50: 4, 60: 0}


def test_suffix_stops_at_the_end_of_a_document():
    drafter = Suffix(Calibration(), DocumentAutomata(), SuffixOptions(min_score=0.0))
    state = state_of([50, 1, 2], documents=[[1, 2, 1, 2]])
    drafter.start(state)
    assert drafter.propose(state, 16).tokens.tolist() == [1, 2]


def test_suffix_copies_a_long_match_deeper_than_a_short_one():
    drafter = Suffix(Calibration(), DocumentAutomata(), SuffixOptions(factor=1.0, min_score=0.0))
    state = state_of([*range(40), 90, 91, 3])
    drafter.start(state)
    assert max(drafter.propose(state, 32).depths) == 1
    state.tokens.extend([4, 5, 6])
    assert max(drafter.propose(state, 32).depths) == 4


def test_suffix_reads_documents_and_never_crosses_them():
    calibration, automata = Calibration(), DocumentAutomata()
    documents = [[1, 2, 3, 4], [9, 8, 7]]
    drafter = Suffix(calibration, automata, SuffixOptions(min_score=0.0))
    state = state_of([50, 2, 3], documents=documents)
    drafter.start(state)
    tree = drafter.propose(state, 16)
    assert [int(tree.tokens[node]) for node in range(len(tree))] == [4]
    assert SEPARATOR not in tree.tokens
    assert automata.over(documents) is automata.over([list(d) for d in documents])


def test_suffix_prefers_what_was_seen_more_often():
    drafter = Suffix(Calibration(), DocumentAutomata(), SuffixOptions())
    state = state_of([5, 6, 7, 1, 5, 6, 7, 2, 5, 6, 8, 3, 5, 6])
    drafter.start(state)
    tree = drafter.propose(state, 8)
    first = {int(tree.tokens[n]): tree.scores[n] for n in range(len(tree)) if tree.parents[n] == -1}
    assert first[7] > first[8]


def test_growing_after_guessed_tokens_changes_nothing():
    drafter = Suffix(Calibration(), DocumentAutomata(), SuffixOptions(min_score=0.0))
    state = state_of([1, 2, 3, 4, 1, 2])
    drafter.start(state)
    before = drafter.propose(state, 8)
    ahead = drafter.grow(state, [3], 8)
    assert int(ahead.tokens[0]) == 4
    assert drafter.propose(state, 8).tokens.tolist() == before.tokens.tolist()


def test_prompt_lookup_takes_the_longest_and_latest():
    drafter = PromptLookup(Calibration(), PromptLookupOptions(ngram=3, length=3))
    state = state_of([1, 2, 3, 10, 11, 2, 3, 20, 21, 22, 1, 2, 3])
    drafter.start(state)
    assert drafter.propose(state, 8).tokens.tolist() == [10, 11, 2]
    state.tokens.append(20)
    assert drafter.propose(state, 8).tokens.tolist() == [21, 22, 1]
    assert drafter.propose(state, 1).tokens.tolist() == [21]
    state.tokens.append(99)
    assert len(drafter.propose(state, 8)) == 0


def test_recycling_grows_from_the_last_successors():
    table = SuccessorTable(10, 2)
    drafter = Recycling(Calibration(), table, RecyclingOptions(min_score=0.0, depth=2))
    state = state_of([0, 1, 2])
    assert len(drafter.propose(state, 8)) == 0, "nothing seen yet"
    top = TopSuccessors(np.array([[3, 4], [5, 6]]), np.log(np.array([[0.9, 0.05], [0.6, 0.3]], np.float32)))
    state.tokens.extend([3, 7])
    # the root was 2 and a drafted 3 was accepted, another token was not: what follows that is not learned
    drafter.observe(state, DraftTree.of([8, 3], [-1, -1]), Verdict((1,), (3, 7)), top)
    state.tokens.append(2)
    tree = drafter.propose(state, 8)
    paths = {tuple(int(tree.tokens[i]) for i in tree.path_to(node)) for node in range(len(tree))}
    assert paths == {(3,), (4,), (3, 5), (3, 6)}
    assert tree.tokens[0] == 3


def test_datastore_takes_the_longest_suffix_and_counts(lab):
    store = lab.Store([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 5], [7, 2, 3, 6, 6]])
    drafter = DatastoreDrafter(Calibration(), store, DatastoreOptions(min_score=0.0))
    tree = drafter.propose(state_of([9, 1, 2, 3]), 8)
    first = {int(tree.tokens[n]): tree.scores[n] for n in range(len(tree)) if tree.parents[n] == -1}
    assert set(first) == {4, 5}, "6 follows a shorter suffix only"
    assert first[4] > first[5]
    assert len(drafter.propose(state_of([8, 8]), 8)) == 0


def test_a_datastore_path_is_scored_by_a_match_that_grows(lab):
    calibration = Calibration()
    drafter = DatastoreDrafter(calibration, lab.Store([[1, 2, 3, 4, 5]]), DatastoreOptions(min_score=0.0))
    tree = drafter.propose(state_of([9, 1, 2, 3]), 8)
    assert tree.tokens.tolist() == [4, 5]
    first, second = (tree.features - calibration.block("datastore", prior_cells())).tolist()
    assert (first // 6, second // 6) == (2, 3), "matches of three tokens, and of four"
    np.testing.assert_allclose(tree.scores, np.cumprod(calibration.cells[tree.features]))


@given(st.lists(st.lists(st.integers(0, 2), max_size=4), min_size=1, max_size=12))
def test_prefix_counts(continuations):
    rows = np.full((len(continuations), 4), -1)
    for row, continuation in zip(rows, continuations, strict=True):
        row[: len(continuation)] = continuation
    tokens, parents, shares = count_prefixes(rows)
    expected = Counter(tuple(c[:n]) for c in continuations for n in range(len(c) + 1))
    assert len(tokens) == len(expected) - 1
    tree = DraftTree.of(tokens, parents)
    for node in range(len(tree)):
        path = tuple(int(tokens[i]) for i in tree.path_to(node))
        assert shares[node] == pytest.approx(expected[path] / expected[path[:-1]])


def test_chunks_that_answer_are_selected():
    generator = np.random.default_rng(0)
    prompt = generator.integers(100, 200, 4000).tolist()
    question = [7, 8, 9, *generator.integers(100, 200, 20).tolist()]
    prompt[2000:2003] = [7, 8, 9]
    prompt += question
    chosen = select_chunks(prompt, 600, chunk=128, question=len(question), head=16)
    assert len(chosen) <= 600
    assert chosen[:16] == prompt[:16]
    assert chosen[-len(question) :] == question
    assert chosen[: -len(question)].count(7) == 1
    assert select_chunks(prompt[:500], 600) == prompt[:500]


@pytest.mark.parametrize("place", [1023, 1024, 1151, 1152])
def test_a_chunk_brings_what_lies_across_its_borders(place):
    """Chunks of 128 begin at 16, 144, …: the answer stands at a border, before it or behind it."""
    prompt = [*range(1000, 4000), 7, 8, 9]
    prompt[place : place + 3] = [7, 8, 9]
    chosen = select_chunks(prompt, 400, chunk=128, question=3, head=16)
    assert len(chosen) <= 400
    at = chosen.index(7)
    assert chosen[at - 30 : at] == prompt[place - 30 : place]
    assert chosen[at : at + 30] == prompt[place : place + 30]
