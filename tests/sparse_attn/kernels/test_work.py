"""The plan of a launch: every row meets every page of its own once, and the shares are even."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_attn.kernels.work import FIELDS, MOST_SHARES, PROGRAMS, SHARE_KEYS, Tiling, Work, make_work

PAGE = 64


def columns(work: Work) -> dict[str, np.ndarray]:
    return dict(zip(FIELDS, work.items.T.astype(np.int64), strict=True))


def pages_of(item: dict[str, int]) -> range:
    """Those that the kernel reads for an item."""
    size = -(-item["pages"] // item["shares"])
    begin = min(item["share"] * size, item["pages"])
    return range(begin, min(begin + size, item["pages"]))


def longest_share(work: Work) -> int:
    of = columns(work)
    return int((-(-of["pages"] // of["shares"])).max()) * PAGE


sequences = st.lists(st.tuples(st.integers(0, 150), st.integers(0, 20000)), min_size=1, max_size=20)


@given(sequences, st.sampled_from([(32, 8), (28, 4), (8, 8), (71, 1), (4, 2)]), st.booleans())
def test_every_row_meets_every_page_once(rows: list[tuple[int, int]], heads: tuple[int, int], narrow: bool) -> None:
    lengths, contexts = zip(*rows, strict=True)
    bounds = np.cumsum([0, *lengths]).tolist()
    tiling = Tiling.of(max(lengths), *heads, PAGE, narrow=narrow)
    assert tiling.group * tiling.heads == heads[0]
    work = make_work(bounds, contexts, [-1] * len(rows), tiling)
    met: dict[int, list[int]] = {row: [] for row in range(bounds[-1])}
    parts: dict[int, set[int]] = {row: set() for row in range(bounds[-1])}
    for line in work.items.tolist():
        item = dict(zip(FIELDS, line, strict=True))
        s = item["sequence"]
        assert 0 < item["rows"] <= tiling.positions
        assert item["shares"] <= MOST_SHARES
        assert (item["context"], item["length"]) == (contexts[s], lengths[s])
        assert item["first_row"] == bounds[s] + item["local"]
        for row in range(item["rows"]):
            met[item["first_row"] + row] += pages_of(item)
            parts[item["first_row"] + row].add(item["part"] + row if item["part"] >= 0 else -1)
    for s, (first, end) in enumerate(pairwise(bounds)):
        for row in range(first, end):
            needed = -(-(contexts[s] + row - first + 1) // PAGE)
            assert sorted(met[row]) == list(range(len(met[row])))  # each once
            assert needed <= len(met[row]) <= needed + -(-tiling.positions // PAGE)
            begin, step, count = work.joins[row].tolist()
            assert parts[row] == ({begin + i * step for i in range(count)} if count > 1 else {-1})
    every = [part for own in parts.values() for part in own if part >= 0]
    assert len(every) == len(set(every)) == work.parts
    assert len(work.items) <= tiling.most_items(bounds[-1], len(rows), 400)


@pytest.mark.parametrize("heads", [(32, 8), (28, 4), (16, 8)])
@pytest.mark.parametrize("contexts", [[131072] + [1024] * 15, [131072], [32768] * 16, [131072] + [1024] * 63])
def test_shares_are_at_most_twice_the_even_one(contexts: list[int], heads: tuple[int, int]) -> None:
    tiling = Tiling.of(1, *heads, PAGE)
    work = make_work(range(len(contexts) + 1), contexts, [-1] * len(contexts), tiling)
    even = max(SHARE_KEYS, sum(contexts) * tiling.heads / PROGRAMS, max(contexts) / MOST_SHARES)
    assert longest_share(work) <= 2 * even


@pytest.mark.parametrize("heads", [(32, 8), (28, 4)])
def test_a_mixed_step_reads_little_more_than_the_least(heads: tuple[int, int]) -> None:
    """A chunk of 2,032 rows and 16 decodes at 128K, planned apart: bytes of KV over those of one read a KV head for
    each decode, and for the chunk as often as its tiles of 128 rows and heads demand."""
    group = heads[0] // heads[1]
    decode = make_work(range(17), [131072] * 16, [-1] * 16, Tiling.of(1, *heads, PAGE))
    chunk = make_work([0, 2032], [131072], [-1], Tiling.of(2032, *heads, PAGE))

    def read(work: Work, tiles_of_heads: int) -> int:
        items = (dict(zip(FIELDS, line, strict=True)) for line in work.items.tolist())
        return sum(len(pages_of(item)) for item in items) * tiles_of_heads

    least_decode = 16 * -(-131073 // PAGE) * heads[1]
    least_chunk = 2032 * group / 128 * (131072 + 1016) / PAGE * heads[1]
    got = read(decode, heads[1]) + read(chunk, heads[0])
    assert read(decode, heads[1]) == least_decode
    assert got <= 1.1 * (least_decode + least_chunk)


def test_a_draft_beside_plain_decodes_makes_few_idle_rows() -> None:
    tiling = Tiling.of(33, 32, 8, PAGE)
    work = make_work([0, 33, 34, 35], [4096] * 3, [0, -1, -1], tiling)
    of = columns(work)
    assert tiling.positions == 16
    assert set(of["tree"][of["sequence"] == 0]) == {0}
    assert {int(n) for n in of["rows"]} == {16, 1}
