"""A suffix automaton over token ids, built online (Blumer et al. 1985; SAM-Decoding, arXiv 2411.10666).

State s stands for all substrings that end at the same places; `length[s]` is the longest of them, `link[s]`
the state of their longest proper suffix that ends at more places, `count[s]` in how many places they end.
Transitions sit in one hash table keyed by (state, token) and, for enumeration, in a linked list per state.
Appending is O(1) amortised; counts walk the suffix links, which is cut off after a while (counts only rank
guesses).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from drafters.sources.heap import pop, push

SEPARATOR = -1  # between documents; never crossed by a guess
_COUNT_HOPS = 64
_EMPTY = -1


@njit(cache=True, inline="always")
def _slot(table, keys, state, token):
    """Index into the hash table of (state, token), or of the free slot where it belongs."""
    mask = len(table) - 1
    key = (np.int64(state) << 32) | (np.int64(token) & 0xFFFFFFFF)
    h = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    i = np.int64(h >> np.uint64(20)) & mask
    while table[i] != _EMPTY and keys[i] != key:
        i = (i + 1) & mask
    return i


@njit(cache=True, inline="always")
def _find(table, keys, target, state, token):
    """The state after (state, token), or -1."""
    edge = table[_slot(table, keys, state, token)]
    return -1 if edge == _EMPTY else target[edge]


@njit(cache=True)
def _add_edge(table, keys, head, after, symbol, target, sizes, state, token, to):
    edge = sizes[1]
    sizes[1] += 1
    symbol[edge] = token
    target[edge] = to
    after[edge] = head[state]
    head[state] = edge
    i = _slot(table, keys, state, token)
    table[i] = edge
    keys[i] = (np.int64(state) << 32) | (np.int64(token) & 0xFFFFFFFF)


@njit(cache=True)
def _append(tokens, table, keys, head, after, symbol, target, link, length, count, sizes):
    """Append tokens; sizes = [states, edges, last state, text length]."""
    for token in tokens:
        last = sizes[2]
        new = sizes[0]
        sizes[0] += 1
        length[new] = sizes[3] + 1
        head[new] = -1
        count[new] = 0
        state = last
        while state != -1 and _find(table, keys, target, state, token) == -1:
            _add_edge(table, keys, head, after, symbol, target, sizes, state, token, new)
            state = link[state]
        if state == -1:
            link[new] = 0
        else:
            follow = _find(table, keys, target, state, token)
            if length[state] + 1 == length[follow]:
                link[new] = follow
            else:
                clone = sizes[0]
                sizes[0] += 1
                length[clone] = length[state] + 1
                link[clone] = link[follow]
                count[clone] = count[follow]
                head[clone] = -1
                edge = head[follow]
                while edge != -1:
                    _add_edge(table, keys, head, after, symbol, target, sizes, clone, symbol[edge], target[edge])
                    edge = after[edge]
                while state != -1:
                    i = _slot(table, keys, state, token)
                    if table[i] == _EMPTY or target[table[i]] != follow:
                        break
                    target[table[i]] = clone
                    state = link[state]
                link[follow] = clone
                link[new] = clone
        state = new
        for _ in range(_COUNT_HOPS):
            if state <= 0:
                break
            count[state] += 1
            state = link[state]
        sizes[2] = new
        sizes[3] += 1


@njit(cache=True)
def _walk(tokens, state, matched, table, keys, target, link, length):
    """Follow tokens from the match (state, matched): the longest suffix that still occurs."""
    for token in tokens:
        to = _find(table, keys, target, state, token)
        while to == -1 and state != 0:
            state = link[state]
            matched = length[state]
            to = _find(table, keys, target, state, token)
        if to == -1:
            matched = 0
        else:
            state = to
            matched += 1
    return state, matched


@njit(cache=True)
def _rehash(table, keys, head, after, symbol, states):
    for state in range(states):
        edge = head[state]
        while edge != -1:
            i = _slot(table, keys, state, symbol[edge])
            table[i] = edge
            keys[i] = (np.int64(state) << 32) | (np.int64(symbol[edge]) & 0xFFFFFFFF)
            edge = after[edge]


@njit(cache=True, inline="always")
def match_bucket(matched):
    """Class of a match length: 1, 2, 3, 4, then by powers of two up to 64."""
    if matched <= 4:
        return max(matched, 1) - 1
    bucket = 4
    while matched > 8 and bucket < 8:
        matched >>= 1
        bucket += 1
    return bucket


@njit(cache=True, inline="always")
def ratio_bucket(ratio):
    """Class of a share of the continuations: eighths of a half, then up to certainty."""
    if ratio >= 0.999:
        return 5
    if ratio > 0.75:
        return 4
    if ratio > 0.5:
        return 3
    if ratio > 0.25:
        return 2
    if ratio > 0.1:
        return 1
    return 0


@njit(cache=True)
def _expand(
    start_state,
    start_match,
    least,
    starts,
    branching,
    budget,
    max_depth,
    min_score,
    cells,
    offset,
    head,
    after,
    symbol,
    target,
    link,
    length,
    count,
):
    """Best-first growth of the most probable continuations below a match and its suffixes that occur in more places,
    `starts` of them at most and none under `least` tokens.

    The root's children come from every match, a token only from the longest that has it; below, a node's
    children come from its own state. A branch that reaches the end of the text goes on from the longest suffix of the
    text that occurred before, as if the branch had been appended: a text that has begun to repeat itself is copied over
    itself, as in LZ77, however short its period.
    """
    capacity = (budget + starts) * branching + 1
    item_state = np.empty(capacity, np.int64)
    item_match = np.empty(capacity, np.int64)
    item_parent = np.empty(capacity, np.int64)
    item_token = np.empty(capacity, np.int64)
    item_score = np.empty(capacity, np.float64)
    item_cell = np.empty(capacity, np.int64)
    items = 0
    heap_score = np.empty(capacity, np.float64)
    heap_item = np.empty(capacity, np.int64)
    heap = 0

    tokens = np.empty(budget, np.int64)
    parents = np.empty(budget, np.int64)
    scores = np.empty(budget, np.float64)
    features = np.empty(budget, np.int64)
    depth = np.empty(budget, np.int64)
    nodes = 0
    top_edge = np.empty(branching, np.int64)

    while True:
        if starts > 0 and start_state > 0 and start_match >= least:
            state, matched = start_state, start_match
            start_state = np.int64(link[state])
            start_match = np.int64(length[start_state])
            parent, score, level = -1, 1.0, 0
            starts -= 1
        else:
            if heap == 0 or nodes == budget:
                break
            item, heap = pop(heap_score, heap_item, heap)
            tokens[nodes] = item_token[item]
            parents[nodes] = item_parent[item]
            scores[nodes] = item_score[item]
            features[nodes] = item_cell[item]
            level = 1
            if item_parent[item] >= 0:
                level = depth[item_parent[item]] + 1
            depth[nodes] = level
            parent, score = nodes, item_score[item]
            state, matched = item_state[item], item_match[item]
            nodes += 1
        if level >= max_depth:
            continue
        if head[state] == -1:  # the text's end
            state = link[state]

        total = 0
        kept = 0
        edge = head[state]
        while edge != -1:
            weight = max(count[target[edge]], 1)
            total += weight
            if symbol[edge] >= 0:
                # insertion into the short list of the most frequent continuations
                i = kept
                if kept < branching:
                    kept += 1
                elif weight > max(count[target[top_edge[branching - 1]]], 1):
                    i = branching - 1
                else:
                    i = -1
                if i >= 0:
                    while i > 0 and max(count[target[top_edge[i - 1]]], 1) < weight:
                        top_edge[i] = top_edge[i - 1]
                        i -= 1
                    top_edge[i] = edge
            edge = after[edge]
        for i in range(kept):
            edge = top_edge[i]
            known = False
            if parent == -1:
                for j in range(items):
                    if item_parent[j] == -1 and item_token[j] == symbol[edge]:
                        known = True
                        break
            if known:
                continue
            ratio = max(count[target[edge]], 1) / total
            cell = match_bucket(matched) * 6 + ratio_bucket(ratio)
            value = score * cells[offset + cell]
            if value < min_score:
                continue
            item_state[items] = target[edge]
            item_match[items] = matched + 1
            item_parent[items] = parent
            item_token[items] = symbol[edge]
            item_score[items] = value
            item_cell[items] = offset + cell
            heap = push(heap_score, heap_item, heap, value, items)
            items += 1
    return tokens[:nodes], parents[:nodes], scores[:nodes], features[:nodes]


class SuffixAutomaton:
    """All substrings of a growing text of token ids."""

    def __init__(self, capacity: int = 1024) -> None:
        self._sizes = np.array([1, 0, 0, 0], dtype=np.int64)
        self._allocate(max(capacity, 16))
        self._link[0] = -1
        self._length[0] = 0
        self._count[0] = 0
        self._head[0] = -1

    def __len__(self) -> int:
        return int(self._sizes[3])

    @property
    def nbytes(self) -> int:
        arrays = (self._link, self._length, self._count, self._head, self._after, self._symbol, self._target)
        return sum(array.nbytes for array in (*arrays, self._table, self._keys))

    def append(self, tokens: Sequence[int] | np.ndarray) -> None:
        """Add tokens at the end of the text."""
        new = np.asarray(tokens, dtype=np.int64)
        needed = len(self) + len(new)
        if needed > self._capacity:
            self._grow(max(needed, 2 * self._capacity))
        _append(
            new,
            self._table,
            self._keys,
            self._head,
            self._after,
            self._symbol,
            self._target,
            self._link,
            self._length,
            self._count,
            self._sizes,
        )

    def repeated(self) -> tuple[int, int]:
        """(state, length) of the longest suffix of the text that also occurs earlier in it."""
        state = int(self._link[self._sizes[2]]) if len(self) else 0
        return state, int(self._length[state])

    def walk(self, tokens: Sequence[int] | np.ndarray, match: tuple[int, int] = (0, 0)) -> tuple[int, int]:
        """The match (state, length) after reading tokens on from `match`."""
        if not len(tokens):
            return match
        new = np.asarray(tokens, dtype=np.int64)
        state, matched = _walk(new, match[0], match[1], self._table, self._keys, self._target, self._link, self._length)
        return int(state), int(matched)

    def expand(
        self,
        match: tuple[int, int],
        least: int,
        starts: int,
        budget: int,
        max_depth: int,
        min_score: float,
        branching: int,
        cells: np.ndarray,
        offset: int,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, parents, path scores and calibration cells of the best continuations (see `_expand`)."""
        return _expand(
            match[0],
            match[1],
            least,
            starts,
            branching,
            budget,
            max_depth,
            min_score,
            cells,
            offset,
            self._head,
            self._after,
            self._symbol,
            self._target,
            self._link,
            self._length,
            self._count,
        )

    def _allocate(self, capacity: int) -> None:
        # at most 2n - 1 states and 3n - 4 transitions for a text of n tokens; the table is at most 3/4 full
        self._capacity = capacity
        self._link = np.empty(2 * capacity + 2, np.int32)
        self._length = np.empty(2 * capacity + 2, np.int32)
        self._count = np.empty(2 * capacity + 2, np.int32)
        self._head = np.empty(2 * capacity + 2, np.int32)
        self._after = np.empty(3 * capacity + 3, np.int32)
        self._symbol = np.empty(3 * capacity + 3, np.int32)
        self._target = np.empty(3 * capacity + 3, np.int32)
        size = 1 << (4 * capacity + 4 - 1).bit_length()
        self._table = np.full(size, _EMPTY, np.int32)
        self._keys = np.empty(size, np.int64)

    def _grow(self, capacity: int) -> None:
        by_state = (self._link, self._length, self._count, self._head)
        by_edge = (self._after, self._symbol, self._target)
        self._allocate(capacity)
        states, edges = int(self._sizes[0]), int(self._sizes[1])
        for old, new in zip(by_state, (self._link, self._length, self._count, self._head), strict=True):
            new[:states] = old[:states]
        for old, new in zip(by_edge, (self._after, self._symbol, self._target), strict=True):
            new[:edges] = old[:edges]
        _rehash(self._table, self._keys, self._head, self._after, self._symbol, states)
