"""Prompts put together of passages that were read alone: exact where all is computed, told where it is not."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.async_engine import AsyncEngine
from service.engine.deviation import ShallowReading
from service.engine.engine import Engine
from service.engine.outputs import Generation
from service.engine.params import SamplingParams
from service.engine.request import Request
from service.engine.spans import PassageSpans
from service.engine.step import Slice
from service.errors import InvalidRequest

from .conftest import make_engine, make_model

PREFACE = [3, 4, 5, 6, 7]
ASKED = [8, 9, 10]


def passage(number: int, length: int = 40) -> list[int]:
    rng = random.Random(number)
    return [rng.randrange(11, 97) for _ in range(length)]


def prompt_of(*passages: list[int]) -> tuple[list[int], PassageSpans]:
    """Preface, passages with two tokens between them, a question."""
    ids, spans = list(PREFACE), []
    for number, one in enumerate(passages):
        ids += [90 - number, 91 - number]
        spans.append(range(len(ids), len(ids) + len(one)))
        ids += one
    return [*ids, *ASKED], PassageSpans(len(PREFACE), tuple(spans))


def params(attention: str, **changes: Any) -> SamplingParams:
    return SamplingParams(
        **{"max_tokens": 12, "attention": attention, "drafter": "none", "ignore_eos": True, **changes}
    )


def ask(engine: Engine, passages: list[list[list[int]]], attention: str, **changes: Any) -> list[Generation]:
    prompts = [prompt_of(*some) for some in passages]
    with AsyncEngine(engine) as door:
        found = door.generate(
            [ids for ids, _ in prompts], params(attention, **changes), spans=[spans for _, spans in prompts]
        )
    engine.check_integrity()
    return found


def ids(found: list[Generation]) -> list[list[int]]:
    return [one.token_ids for one in found]


SOME = [[passage(1), passage(2), passage(3)], [passage(3), passage(1)], [passage(4), passage(2, 60)]]


@pytest.mark.parametrize("attention", ["blend:first=60", "blend:first=0,share=1"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "smollm3"])
def test_with_all_of_a_passage_computed_it_is_dense_bit_for_bit(family: str, attention: str) -> None:
    dense = ask(make_engine(family), SOME, "dense", logprobs=3)
    blended = ask(make_engine(family), SOME, attention, logprobs=3)
    assert [one.logprobs for one in blended] == [one.logprobs for one in dense]
    assert ids(blended) == ids(dense)


@settings(max_examples=4, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_passages_of_any_length_that_are_no_longer_than_first_are_dense(lengths: list[int], seed: int) -> None:
    some = [[passage(seed + i, length) for i, length in enumerate(lengths)]]
    dense = ask(make_engine(), some, "dense", logprobs=3)
    assert ask(make_engine(), some, f"blend:first={max(lengths)}", logprobs=3)[0].logprobs == dense[0].logprobs


def seen_alone(token_ids: list[int], spans: PassageSpans) -> torch.Tensor:
    """bool [T, T] under which rows of a passage see nothing but the preface and their own passage."""
    seen = torch.ones(len(token_ids), len(token_ids), dtype=torch.bool).tril()
    for span in spans.passages:
        seen[span.start : span.stop, spans.preface : span.start] = False
    return seen


def values_of_second_layer(*texts: list[int]) -> list[torch.Tensor]:
    """float64 [T, Hkv * D] of each, as transformers computes them."""
    model = make_model("llama")
    found: list[torch.Tensor] = []
    model.model.layers[1].self_attn.v_proj.register_forward_hook(lambda _m, _i, out: found.append(out[0]))
    with torch.inference_mode():
        for token_ids in texts:
            model(torch.tensor([token_ids]))
    return found


@settings(max_examples=6, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=3),
    share=st.floats(0.01, 1),
    first=st.integers(0, 3),
    step_tokens=st.sampled_from([24, 512]),
)
def test_computed_are_the_tokens_whose_values_differ_most(
    lengths: list[int], share: float, first: int, step_tokens: int
) -> None:
    """The reference are the values of the unmodified model, of the prompt and of each passage behind the preface."""
    token_ids, spans = prompt_of(*(passage(7 + i, length) for i, length in enumerate(lengths)))
    engine = make_engine(step_tokens=step_tokens, max_running=4)
    ran: list[Request] = []
    fill = engine.blending.fill

    def noting(part: Slice) -> None:
        ran.append(part.request)
        fill(part)

    engine.blending.fill = noting  # type: ignore[method-assign]
    with AsyncEngine(engine) as door:
        policy = f"blend:first={first},share={share}"
        (found,) = door.generate([token_ids], params(policy, max_tokens=2), spans=[spans])
    long = [span for span in spans.passages if len(span) > first]
    places = [place for span in long for place in span[first:]]
    count = min(math.ceil(share * sum(map(len, long))), len(places))
    assert found.stats["filled_tokens"] == len(places) - count
    if not ran:
        return
    here, *alone = values_of_second_layer(
        token_ids, *(PREFACE + token_ids[span.start : span.stop] for span in spans.passages)
    )
    differ = torch.zeros(len(token_ids), dtype=torch.float64)
    for span, own in zip(spans.passages, alone, strict=True):
        differ[span.start : span.stop] = (own[len(PREFACE) :] - here[span.start : span.stop]).square().sum(-1)
    filled = [place for gap in ran[0].fills for place in gap]
    chosen = [place for place in places if place not in filled]
    assert differ[filled].max() <= differ[chosen].min() * (1 + 1e-4) + 1e-9 if chosen else not count


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_the_more_is_computed_the_nearer_it_is_to_dense(family: str) -> None:
    def distance(attention: str) -> float:
        found = ask(make_engine(family), SOME, attention, max_tokens=1, logprobs=20)
        return sum(apart(one, other) for one, other in zip(found, dense, strict=True))

    def apart(one: Generation, other: Generation) -> float:
        assert one.logprobs is not None
        assert other.logprobs is not None
        mine, theirs = dict(one.logprobs[0].top), dict(other.logprobs[0].top)
        return max(abs(mine.get(token, -9.0) - value) for token, value in theirs.items())

    dense = ask(make_engine(family), SOME, "dense", max_tokens=1, logprobs=20)
    none, most = distance("blend:first=0"), distance("blend:first=0,share=0.9")
    assert 0 < most < none


@pytest.mark.parametrize("step_tokens", [64, 512])
@pytest.mark.parametrize("family", ["llama", "gemma3", "smollm3"])
def test_rows_see_passages_read_alone_where_they_stand(family: str, step_tokens: int) -> None:
    """The reference is a mask under which rows of a passage see nothing but their own passage."""
    token_ids, spans = prompt_of(*SOME[0])
    spans = PassageSpans(0, spans.passages)
    engine = make_engine(family, step_tokens=step_tokens)
    with AsyncEngine(engine) as door:
        (found,) = door.generate([token_ids], params("blend:first=0", max_tokens=1, logprobs=5), spans=[spans])
    model = make_model(family)
    model.set_attn_implementation("eager")
    seen = seen_alone(token_ids, spans)
    masks = {"full_attention": seen, "sliding_attention": seen & seen.new_ones(seen.shape).triu(-19)}
    added = {
        kind: torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~mask, -torch.inf)[None, None]
        for kind, mask in masks.items()
    }
    with torch.inference_mode():
        mask = added if family == "gemma3" else added["full_attention"]
        logits = model(torch.tensor([token_ids]), attention_mask=mask).logits[0, -1].log_softmax(-1)
    assert found.logprobs is not None
    for token, value in found.logprobs[0].top:
        assert value == pytest.approx(float(logits[token]), abs=2e-4)


def test_an_answer_does_not_depend_on_what_was_asked_before() -> None:
    engine = make_engine()
    first = [ask(engine, [some], "blend:first=4")[0] for some in SOME]
    again = [ask(engine, [some], "blend:first=4")[0] for some in reversed(SOME)]
    assert ids(again[::-1]) == ids(first) == ids(ask(make_engine(step_tokens=512), SOME, "blend:first=4"))
    assert first[0].stats["passage_hits"] == 0
    assert first[1].stats["passage_hits"] == 80  # both of its passages stood elsewhere before
    assert again[0].stats["passage_hits"] == again[0].stats["passage_tokens"] == 100
    assert again[0].stats["filled_tokens"] == 92
    assert engine.stats()["prefix_cache_hits"] == engine.stats()["cached_tokens"] == 0


def test_answers_say_that_they_are_lossy_and_leave_exact_ones_alone() -> None:
    engine = make_engine()
    exact = ids(ask(make_engine(), SOME, "dense"))
    blended = ask(engine, SOME, "blend:first=0")
    assert ids(blended) != exact
    assert {(one.stats["attention"], one.stats["lossy"]) for one in blended} == {("blend:first=0", True)}
    after = ask(engine, SOME, "dense")
    assert ids(after) == exact
    assert not any(one.stats["lossy"] for one in after)


BOTH = pytest.mark.parametrize("attention", ["blend:first=3", "blend:first=1,share=0.2"])


@BOTH
@pytest.mark.parametrize("changes", [{}, {"temperature": 0.8, "seed": 5}])
def test_speculation_is_lossless_over_a_blend(attention: str, changes: dict[str, Any]) -> None:
    plain = ask(make_engine(), SOME, attention, **changes)
    assert ids(ask(make_engine(), SOME, attention, drafter="suffix", **changes)) == ids(plain)


@BOTH
def test_preemption_and_small_steps_change_nothing(attention: str) -> None:
    expected = ids(ask(make_engine(step_tokens=512), SOME, attention))
    tight = make_engine(pages=14, step_tokens=24)
    assert ids(ask(tight, SOME, attention, max_tokens=12)) == expected
    assert tight.scheduler.num_preemptions > 0


def test_a_model_that_cannot_tell_what_differs_fails_the_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> bool:
        raise MemoryError("no")

    monkeypatch.setattr(ShallowReading, "read", fail)
    engine = make_engine()
    with AsyncEngine(engine) as door:
        prompts = [prompt_of(*some) for some in SOME]
        policies = ["blend:share=0.1", "blend:first=3", "dense"]
        found = door.generate(
            [ids for ids, _ in prompts], [params(one) for one in policies], spans=[spans for _, spans in prompts]
        )
    assert [one.finish_reason for one in found] == ["error", "length", "length"]
    assert not engine.blending.waits
    engine.check_integrity()


def test_without_memory_each_answer_reads_its_passages_and_is_the_same() -> None:
    expected = ids(ask(make_engine(), SOME, "blend:first=3"))
    engine = make_engine(passage_memory=0)
    assert ids(ask(engine, SOME, "blend:first=3")) == expected
    assert ids(ask(engine, SOME, "blend:first=3")) == expected
    assert engine.stats()["passage_bytes_used"] == engine.stats()["passage_hits"] == 0


def test_memory_for_passages_is_bounded() -> None:
    token_bytes = make_engine().loaded.kv_shape.bytes_per_token(torch.float64)
    engine = make_engine(passage_memory=100 * token_bytes)
    for some in SOME:
        ask(engine, [some], "blend:first=3")
    assert 0 < engine.stats()["passage_bytes_used"] <= 100 * token_bytes
    assert engine.stats()["passage_evictions"] > 0


def test_passages_in_int8_take_less_and_change_little() -> None:
    def first_token(engine: Engine) -> dict[int, float]:
        (found,) = ask(engine, SOME[:1], "blend:first=2", max_tokens=1, logprobs=20)
        assert found.logprobs is not None
        return dict(found.logprobs[0].top)

    exact, engine = make_engine(), make_engine(passage_dtype="int8")
    one, other = first_token(exact), first_token(engine)
    assert max(abs(one[token] - other[token]) for token in one.keys() & other.keys()) < 0.2
    assert len(one.keys() & other.keys()) > 15
    assert engine.stats()["passage_bytes_used"] * 6 < exact.stats()["passage_bytes_used"]


def test_pages_in_int8_hold_passages_too() -> None:
    found = ask(make_engine("llama", kv_dtype="int8"), SOME, "blend:first=40")
    assert ids(found)[:2] == ids(ask(make_engine("llama", kv_dtype="int8"), SOME, "dense"))[:2]
    again = ask(engine := make_engine("llama", kv_dtype="int8"), SOME, "blend:first=2")
    assert ids(ask(engine, SOME, "blend:first=2")) == ids(again)


def test_owners_do_not_find_what_others_have_read() -> None:
    engine = make_engine()
    ask(engine, SOME[:1], "blend", owner="ann")
    assert ask(engine, SOME[:1], "blend", owner="bob")[0].stats["passage_hits"] == 0
    assert ask(engine, SOME[:1], "blend", owner="ann")[0].stats["passage_hits"] == 120


def test_a_passage_that_cannot_be_read_fails_its_requests_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    expected = ids(ask(make_engine(), SOME[1:2], "blend:first=3"))
    taken = engine.runner.get_tokens

    def fail_for_one(pages: Any, places: range) -> Any:
        if len(places) == 60:
            raise RuntimeError("no")
        return taken(pages, places)

    monkeypatch.setattr(engine.runner, "get_tokens", fail_for_one)
    good, bad = ask(engine, SOME[1:], "blend:first=3")
    assert good.token_ids == expected[0]
    assert bad.finish_reason == "error"
    assert "could not be read" in str(bad.error)
    assert not engine.has_work


def test_an_aborted_request_leaves_nothing_behind() -> None:
    engine = make_engine(step_tokens=16, max_running=2)
    token_ids, spans = prompt_of(*SOME[0])
    for _ in range(4):
        engine.add_request(token_ids, params("blend:first=3"), spans=spans)
    engine.step()
    engine.reset()
    while engine.has_work:
        engine.step()
    engine.check_integrity()
    assert not engine.blending.waits
    assert engine.blocks.num_owned == 0


@pytest.mark.parametrize(
    ("attention", "why"),
    [
        ("blend:first=-1", "must not be negative"),
        ("blend:gate=8", "gate and block are for policies"),
        ("blend+quest", "joined with no other"),
        ("blend:share=1.1", "must be 0 to 1"),
        ("blend:share=-0.1", "must be 0 to 1"),
    ],
)
def test_wrong_options_are_refused(attention: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        ask(make_engine(), SOME[:1], attention)


def test_a_prompt_without_passages_is_refused() -> None:
    with AsyncEngine(make_engine()) as door, pytest.raises(InvalidRequest, match="none that can be told apart"):
        door.generate([[3, 4, 5]], params("blend"))


def test_scores_of_a_prompt_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="computed, not blended"):
        ask(make_engine(), SOME[:1], "blend", prompt_logprobs=1)


def test_no_engine_blends_unasked() -> None:
    with pytest.raises(ValueError, match="for requests that name it"):
        make_engine(attention="blend:first=3")


@given(
    gaps=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), max_size=6),
    tail=st.integers(1, 9),
    counts=st.lists(st.integers(1, 20), min_size=200, max_size=200),
)
def test_chunks_pass_over_what_is_copied_and_compute_the_rest_once(
    gaps: list[tuple[int, int]], tail: int, counts: list[int]
) -> None:
    fills, end = [], 0
    for before, length in gaps:
        fills.append(range(end + before, end + before + length))
        end += before + length
    request = Request("r", list(range(end + tail)), SamplingParams())
    request.fills = fills
    computed, copied = [], []
    for count in counts:
        if not request.num_pending:
            break
        taken = min(count, request.num_rows_left)
        start = request.num_computed
        stop, passed = request.stretch(taken)
        tokens = [token for token in range(start, stop) if not any(token in fill for fill in passed)]
        part = Slice(request, start, tokens, samples=stop == len(request.token_ids), fills=passed)
        assert part.end == stop
        assert part.num_rows == taken == sum(run.num_rows for run in part.runs)
        assert [run.samples for run in part.runs] == [False] * (len(part.runs) - 1) + [part.samples]
        for run in part.runs:
            assert run.token_ids == list(range(run.start, run.end))
            computed += run.token_ids
        copied += passed
        request.num_computed = stop
    assert not request.num_pending
    assert copied == fills
    assert sorted([*computed, *(token for fill in fills for token in fill)]) == request.token_ids
