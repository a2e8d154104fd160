"""Forced tokens are what comes out, drafted or not, at any temperature; then the model goes on as it would."""

from dataclasses import replace

import pytest
import torch

from drafters.tree import DraftTree
from service.engine.async_engine import AsyncEngine
from service.engine.params import DraftSources, SamplingParams
from service.engine.sampling.forced import ForcedText
from service.engine.sampling.grammars import Constraint
from service.errors import InvalidRequest

from ..conftest import generate, make_engine

FORCED = (5, 9, 5, 9, 7, 3, 3, 3)


@pytest.mark.parametrize("drafter", ["none", "suffix", "auto"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_the_output_begins_with_them_and_then_is_the_models(drafter: str, temperature: float) -> None:
    engine = make_engine()
    prompt = [1, 4, 3, 5, 9, 5, 9, 7]
    params = SamplingParams(max_tokens=14, temperature=temperature, drafter=drafter, ignore_eos=True)
    (said,) = generate(engine, [prompt], [replace(params, forced=FORCED)])
    assert tuple(said.token_ids[: len(FORCED)]) == FORCED
    (plain,) = generate(engine, [prompt], [replace(params, forced=tuple(said.token_ids), drafter="none")])
    assert plain.token_ids == said.token_ids
    if temperature == 0:
        (free,) = generate(engine, [[*prompt, *FORCED]], [replace(params, max_tokens=14 - len(FORCED))])
        assert said.token_ids[len(FORCED) :] == free.token_ids
    engine.check_integrity()


def test_an_end_among_them_ends_the_output() -> None:
    (said,) = generate(make_engine(), [[1, 4, 3]], [SamplingParams(max_tokens=9, forced=(5, 6, 2))])
    assert (said.token_ids, said.finish_reason) == ([5, 6, 2], "stop")


def test_a_sure_drafter_is_believed_to_the_end() -> None:
    sources = DraftSources(documents=[[4, 3, *FORCED]])
    engine = make_engine()
    params = SamplingParams(max_tokens=len(FORCED), drafter="suffix", ignore_eos=True, forced=FORCED)
    with AsyncEngine(engine) as door:
        (said,) = door.generate([[1, 4, 3]], params, [sources])
    assert tuple(said.token_ids) == FORCED
    assert said.stats["decode_steps"] < len(FORCED)


def test_rows_are_masked_by_their_own_paths() -> None:
    text = ForcedText([4, 6, 8], prompt_len=2)
    tree = DraftTree.of([6, 7, 8, 8], [-1, -1, 0, 1])  # 6 then 8, which is right; 7 then 8, which is not
    rows = torch.isfinite(text.adjust(torch.zeros(5, 10), [0, 1, 4], tree))
    allowed = [row.nonzero().flatten().tolist() for row in rows]
    assert allowed[:2] == [[6], [8]]
    assert [len(row) for row in allowed[2:]] == [10, 10, 10]  # never reached, all said, never reached


def test_a_constraint_besides_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="forced"):
        SamplingParams(forced=(1,), constraint=Constraint("regex", "a"))
