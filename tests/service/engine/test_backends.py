"""Another dense back end gives the engine's tokens, and the statistics name it."""

from __future__ import annotations

import pytest

from service.engine.params import SamplingParams

from .conftest import generate, make_engine

PROMPT = [(7 * i) % 90 + 3 for i in range(150)]
PARAMS = SamplingParams(max_tokens=10, ignore_eos=True, drafter="prompt_lookup", attention="dense")


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("backend", ["sdpa", "flex"])
def test_the_tokens_are_those_of_our_own_kernels(family: str, backend: str) -> None:
    own = make_engine(family, attention_backend="own")
    expected = generate(own, [PROMPT], PARAMS)[0].token_ids
    engine = make_engine(family, attention_backend=backend)
    assert generate(engine, [PROMPT], PARAMS)[0].token_ids == expected
    assert own.stats()["kernels"] == ["torch"]
    assert engine.stats()["kernels"] == [f"torch+{backend}"]
