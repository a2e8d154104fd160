"""What the host writes for a captured step that selects pages: rows, runs and items of any batch, in fixed shapes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from service.engine.options import parse_policy
from sparse_attn.kernels.work import FIELDS, LISTED_FIELDS, OF_NOBODY, Tiling
from sparse_attn.plan.graph_selection import DecodedRows, GraphRule, GraphSelection
from sparse_attn.plan.policy import ModelShape

PAGE, PAGES, ROWS = 16, 60, 24
SHAPE = ModelShape(3, 8, 2, 16, PAGE)


class Buffers:
    """Of one step: on a CPU the host's are the device's."""

    def __init__(self) -> None:
        self.held: dict[str, torch.Tensor] = {}

    def make(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.held[name] = torch.zeros(shape, dtype=dtype)


def chain_with_branches(nodes: int) -> tuple[list[int], torch.Tensor]:
    """Depths of a token and nodes below it, every third of which begins a new branch, and ancestor-or-self."""
    depths, mask = [0], torch.eye(nodes + 1, dtype=torch.bool)
    for i in range(1, nodes + 1):
        parent = 0 if i % 3 == 0 else i - 1
        depths.append(depths[parent] + 1)
        mask[i] |= mask[parent]
    return depths, mask


@given(
    sequences=st.lists(st.tuples(st.integers(97, 900), st.integers(0, 9)), min_size=1, max_size=4),
    dense=st.sets(st.integers(0, 3)),
    policy=st.sampled_from([
        "quest:budget=96,sink=16,recent=32,interval=4,dense_layers=1", "quest:budget=96,sink=16,recent=32",
        "streaming:sink=16,local=32,block=16",
    ]),
)  # fmt: skip
def test_every_row_is_in_a_run_and_in_an_item(sequences: list[tuple[int, int]], dense: set[int], policy: str) -> None:
    sequences = [(min(context, PAGE * PAGES - nodes - 1), nodes) for context, nodes in sequences]
    total = sum(nodes + 1 for _, nodes in sequences)
    if total > ROWS:
        return
    rule = GraphRule.of(parse_policy(policy), SHAPE)
    assert rule is not None
    tables, lens = torch.zeros(5, PAGES, dtype=torch.int32), torch.zeros(5, dtype=torch.int32)
    buffers = Buffers()
    tiling = Tiling.of(10, 8, 2, PAGE)
    step = GraphSelection(rule, ROWS, tiling, tables, lens, buffers.make, buffers.held, buffers.held)
    rows = []
    for s, (context, nodes) in enumerate(sequences):
        depths, mask = chain_with_branches(nodes)
        state = None if s in dense else rule.state(context)  # the token is the first behind the prompt, so it selects
        rows.append(DecodedRows(context, [context + d for d in depths], mask, 0 if nodes else -1, state))
    step.fill(rows)

    runs = [dict(zip(LISTED_FIELDS, run, strict=True)) for run in buffers.held["runs"].tolist()]
    items = [dict(zip(FIELDS, item, strict=True)) for item in buffers.held["listed_items"].tolist()]
    owner = [(s, local) for s, (_, nodes) in enumerate(sequences) for local in range(nodes + 1)]
    met: dict[int, set[int]] = {}
    for item in items:
        run = runs[item["sequence"]]
        for row in range(item["first_row"], item["first_row"] + item["rows"]):
            s, local = owner[row]
            assert (run["sequence"], item["local"] + row - item["first_row"]) == (s, local)
            assert item["length"] == sequences[s][1] + 1
            assert run["end"] * PAGE > sequences[s][0] + local >= (run["end"] - 1) * PAGE - len(owner)
            assert max(run["recent"], run["streaming_recent"]) * PAGE <= sequences[s][0]
            assert (run["source"] == OF_NOBODY) == (s in dense)
            if run["source"] >= 0:
                assert buffers.held["ends"][run["source"]] == run["recent"]
                assert owner[run["source"]][0] == s
            met.setdefault(row, set()).add(item["share"])
    assert sorted(met) == list(range(total))
    for row, shares in met.items():
        assert len(shares) == max(1, int(buffers.held["listed_joins"][row, 2]))
    assert buffers.held["row_sequences"][:total].tolist() == [s for s, _ in owner]
    assert (buffers.held["ends"][total:] == -1).all()
