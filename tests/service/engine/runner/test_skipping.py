"""Tiles that are left out in whole answers: what a GPU's kernels make of them is what the reference makes."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from service.engine.outputs import Generation
from service.engine.params import SamplingParams
from sparse_attn import backend
from sparse_attn.kernels import triton_kernels

from ..conftest import generate, make_engine

PROMPTS = [[(7 * i + n) % 23 + 3 for i in range(length)] for n, length in enumerate((150, 90, 9))]


def answers(drafter: str, policy: str) -> list[Generation]:
    params = SamplingParams(max_tokens=8, drafter=drafter, attention=policy, ignore_eos=True)
    return generate(make_engine(), PROMPTS, params)


@pytest.mark.parametrize("drafter", ["none", "suffix"])
def test_a_gpus_kernels_write_what_the_reference_writes(drafter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks, beside one another and with drafts; the shortest is dense, below the gate."""
    policy = "skip:lambda=1000,gate=64"
    expected = answers(drafter, policy)
    monkeypatch.setattr(backend, "select_kernels", lambda *_: triton_kernels())
    got = answers(drafter, policy)
    dense = answers(drafter, "dense")
    assert [one.token_ids for one in got] == [one.token_ids for one in expected]
    assert [one.token_ids for one in got[:2]] != [one.token_ids for one in dense[:2]], "nothing was left out"
    assert got[2].token_ids == dense[2].token_ids
    for stat in ("prefill_density", "decode_density"):
        assert [one.stats.get(stat) for one in got] == [one.stats.get(stat) for one in expected]
        assert got[0].stats[stat] < 1 == got[2].stats.get(stat, 1)
