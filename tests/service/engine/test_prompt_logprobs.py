"""Log-probabilities of a prompt's own tokens: transformers' numbers, whatever chunks, caches and preemptions lie
between, and never the logits of a whole prompt."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from service.engine.engine import Engine
from service.engine.outputs import Generation
from service.engine.params import SamplingParams
from service.engine.runner import model_runner
from service.errors import InvalidRequest

from .conftest import FAMILIES, generate, make_engine, make_model

SCORE = SamplingParams(max_tokens=0, prompt_logprobs=3, drafter="none")


def tokens(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 97) for _ in range(length)]


def of_model(ids: list[int], family: str = "llama") -> torch.Tensor:
    """What transformers says of each place [n, V], without pages."""
    with torch.inference_mode():
        return make_model(family)(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)


def check(found: Generation, ids: list[int], expected: torch.Tensor, count: int = 3) -> None:
    scored = found.prompt_logprobs
    assert scored is not None
    assert [entry.token_id for entry in scored] == ids[1:]
    for row, entry in zip(expected, scored, strict=False):
        assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-6)
        assert entry.rank == int((row > row[entry.token_id]).sum()) + 1
        assert [logprob for _, logprob in entry.top] == pytest.approx(row.topk(count).values.tolist(), abs=1e-6)
        assert all(float(row[token]) == pytest.approx(logprob, abs=1e-6) for token, logprob in entry.top)


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_the_models_own(family: str) -> None:
    """Soft caps and scales behind the head included; several prompts in a step, of one chunk and of many."""
    prompts = [tokens(1, 150), tokens(2, 9), tokens(3, 65), tokens(4, 2), tokens(5, 1)]
    for ids, found in zip(prompts, generate(make_engine(family), prompts, SCORE), strict=True):
        assert (found.token_ids, found.text, found.finish_reason) == ([], "", "length")
        check(found, ids, of_model(ids, family))


def test_a_cached_prefix_is_computed_again_and_what_was_computed_is_cached(engine: Engine) -> None:
    ids, asked = tokens(1, 150), SamplingParams(max_tokens=4, ignore_eos=True)
    both = SamplingParams(max_tokens=4, ignore_eos=True, prompt_logprobs=3, logprobs=2)
    plain, scored = (generate(engine, [ids], params)[0] for params in (asked, both))
    check(scored, ids, of_model(ids))
    assert scored.stats["cached_tokens"] == 0
    assert scored.token_ids == plain.token_ids
    assert plain.prompt_logprobs is None
    assert len(scored.logprobs or []) == 4
    assert generate(engine, [ids], asked)[0].stats["cached_tokens"] > 0


def test_preemption_loses_and_doubles_none() -> None:
    engine = make_engine(pages=24)
    prompts = [tokens(seed, 180) for seed in range(3)]
    found = generate(engine, prompts, SamplingParams(max_tokens=40, ignore_eos=True, prompt_logprobs=3))
    assert engine.scheduler.num_preemptions > 0
    for ids, one in zip(prompts, found, strict=True):
        check(one, ids, of_model(ids))
        assert len(one.token_ids) == 40


def test_the_logits_of_few_rows_are_held_at_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    own = model_runner.logits_of

    def counted(model: Any, hidden: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden))
        return own(model, hidden)

    monkeypatch.setattr(model_runner, "logits_of", counted)
    monkeypatch.setattr(model_runner, "SCORED_ROWS", 16)
    generate(engine, [tokens(1, 300)], SCORE)
    assert sum(rows) == 299
    assert max(rows) == 16


def test_a_policy_scores_by_what_its_rows_see(engine: Engine) -> None:
    ids = tokens(1, 480)
    asked = SamplingParams(max_tokens=0, prompt_logprobs=3, attention="streaming:sink=16,local=32,gate=0")
    whole, part = (found.prompt_logprobs or [] for found in generate(engine, [ids, ids[:401]], asked))
    assert len(whole) == 479
    assert [entry.logprob for entry in whole[:400]] == pytest.approx([entry.logprob for entry in part], abs=1e-6)
    dense = of_model(ids)
    assert any(abs(float(dense[n, ids[n + 1]]) - entry.logprob) > 1e-3 for n, entry in enumerate(whole))


def test_no_tokens_are_asked_for_where_nothing_is_scored() -> None:
    with pytest.raises(InvalidRequest, match="max_tokens must be at least 1"):
        SamplingParams(max_tokens=0)
    with pytest.raises(InvalidRequest, match="prompt_logprobs must be between 0 and 20"):
        SamplingParams(prompt_logprobs=21)
