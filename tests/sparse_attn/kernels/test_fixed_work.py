"""The fixed plan: a row's keys are cut at the same places whatever is beside it, and each is met once."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from sparse_attn.kernels.fixed_work import SHARE_KEYS, FixedTiling
from sparse_attn.kernels.work import FIELDS

PAGE = 64

sequences = st.lists(st.tuples(st.integers(0, 150), st.integers(0, 40000), st.booleans()), min_size=1, max_size=12).map(
    lambda rows: [(min(n, 65) if tree else n, context, tree) for n, context, tree in rows]
)


@example([(3, SHARE_KEYS - 2, True), (65, SHARE_KEYS + 7, True)], (32, 8))  # a tree across a border
@given(sequences, st.sampled_from([(32, 8), (28, 4), (8, 8), (71, 1)]))
def test_every_row_meets_every_share_once_and_in_order(
    rows: list[tuple[int, int, bool]], heads: tuple[int, int]
) -> None:
    lengths, contexts, trees = zip(*rows, strict=True)
    bounds = np.cumsum([0, *lengths]).tolist()
    tiling = FixedTiling.of_model(*heads, PAGE)
    work = tiling.plan(bounds, contexts, [0 if tree else -1 for tree in trees])
    written: dict[tuple[int, int], list[int]] = {}  # shares behind a part of a row, -1 for the result
    for line in work.items.tolist():
        item = dict(zip(FIELDS, line, strict=True))
        shares = list(range(item["share"], item["share"] + item["shares"]))
        tree, keys = trees[item["sequence"]], item["pages"] * PAGE
        assert item["first_row"] == bounds[item["sequence"]] + item["local"]
        assert 0 < item["rows"] <= tiling.positions
        assert (item["shares"] - 1 + item["share"]) * SHARE_KEYS < keys
        if tree and item["tree"] < 0:
            assert keys <= item["context"]  # no new key is read where it lies
        elif tree:
            assert item["rows"] == 1
        for row in range(item["rows"]):
            part = item["part"] + row if item["part"] >= 0 else -1
            assert (item["first_row"] + row, part) not in written
            written[item["first_row"] + row, part] = shares
    for s, (length, context, _) in enumerate(rows):
        for i in range(length):
            begin, step, count = work.joins[bounds[s] + i].tolist()
            parts = [begin + n * step for n in range(count)] if count > 1 else [-1]
            met = [share for part in parts for share in written.pop((bounds[s] + i, part))]
            assert met == list(range(len(met)))
            assert len(met) >= (context + i) // SHARE_KEYS + 1
    assert not written
    assert len(work.items) <= tiling.most_items(bounds[-1], len(rows), 1000)
    assert work.parts <= tiling.most_parts(bounds[-1], len(rows), 1000)


def test_a_long_context_is_shared_out_and_a_prompt_has_tiles_enough() -> None:
    tiling = FixedTiling.of_model(32, 8, PAGE)
    decode = tiling.plan([0, 1], [131072], [-1])
    assert len(decode.items) == 65
    chunk = tiling.plan([0, 2032], [131072], [-1])
    assert (len(chunk.items), chunk.parts) == (127, 0)
