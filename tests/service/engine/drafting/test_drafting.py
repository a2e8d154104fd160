"""Speculation in the engine changes nothing but the number of forwards."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from drafters.base import Drafter, RequestState, TopSuccessors
from drafters.models.pacing import Pace
from drafters.registry import DRAFTERS
from drafters.tracked import TrackedDrafter
from drafters.tree import DraftTree
from drafters.verify import Verdict
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loading.checkpoint import prepare
from service.engine.outputs import Generation
from service.engine.params import DraftSources, SamplingParams
from service.engine.request import Request
from service.engine.step import Slice
from service.errors import InvalidRequest

from ..conftest import FAMILIES, generate, make_engine, make_model

HERE = [name for name in DRAFTERS if name not in ("datastore", "trained")]  # which have tests of their own


def prompt(seed: int = 0) -> list[int]:
    """Text with much to copy: sentences that come again."""
    rng = random.Random(seed)
    phrases = [[rng.randrange(3, 97) for _ in range(12)] for _ in range(4)]
    return [t for _ in range(8) for t in rng.choice(phrases)]


def repetitive_model(seed: int = 0) -> Any:
    """A random model that likes to repeat, so that drafts are accepted at all."""
    return make_model(seed=seed)


def drafting_engine(tmp_path: Any = None, **options: Any) -> Engine:
    config: dict[str, Any] = {
        "dtype": "float64",
        "page_size": 16,
        "step_tokens": 64,
        "kv_memory": 8 << 20,
    }
    if tmp_path is not None:
        draft = make_model(seed=0, num_hidden_layers=3)
        draft.save_pretrained(tmp_path / "draft")
        config["draft_model"] = str(tmp_path / "draft")
    return Engine(prepare("llama", repetitive_model()), EngineConfig(**{**config, **options}))


Run = Callable[..., list[Generation]]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """One engine for all drafters: what one of them taught it, or left in its pages, changes no token of the next."""
    return drafting_engine(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def run(shared: Engine) -> Run:
    """Three prompts at once by a drafter; `changes` are of the parameters."""

    def made(drafter: str, max_tokens: int, temperature: float, **changes: Any) -> list[Generation]:
        each = [
            SamplingParams(
                max_tokens=max_tokens, temperature=temperature, seed=i, drafter=drafter, ignore_eos=True, **changes
            )
            for i in range(3)
        ]
        return generate(shared, [prompt(i) for i in range(3)], each)

    return made


@pytest.fixture(scope="module")
def plain(run: Run) -> Callable[..., list[list[int]]]:
    """The tokens of plain decoding, made once for each set of parameters."""

    @functools.cache
    def made(max_tokens: int, temperature: float, **changes: Any) -> list[list[int]]:
        return [r.token_ids for r in run("none", max_tokens, temperature, **changes)]

    return made


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("drafter", HERE)
def test_every_drafter_gives_the_tokens_of_plain_decoding(
    drafter: str, temperature: float, shared: Engine, run: Run, plain: Callable[..., list[list[int]]]
) -> None:
    if drafter == "multi_round" and temperature:
        pytest.skip("rejection keeps the distribution, not the tokens: see tests/drafters/test_exact.py")
    results = run(drafter, 24, temperature, top_p=0.9)
    assert [r.token_ids for r in results] == plain(24, temperature, top_p=0.9)
    assert all(r.finish_reason == "length" for r in results)
    assert all(len(r.sources) == len(r.token_ids) for r in results)
    assert not any(r.stats["drafting"]["failures"] for r in results)
    shared.check_integrity()
    assert not shared.lent.sessions


PENALTIES: dict[str, Any] = {
    "repetition_penalty": 1.05,
    "frequency_penalty": 0.05,
    "presence_penalty": -0.3,
    "logit_bias": ((5, 0.5), (9, -100.0)),
    "min_p": 0.02,
}


@pytest.mark.parametrize(
    ("drafter", "temperature", "cut"),
    [
        ("auto", 0.0, {}),
        ("auto", 0.8, {"top_k": 40}),
        ("suffix", 0.0, {"top_k": 40}),
        ("suffix", 0.8, {}),
        ("draft_model", 0.8, {"top_k": 40}),
        ("draft_model", 0.0, {}),
        ("self_speculation", 0.8, {}),
        ("self_speculation", 0.0, {"top_k": 40}),
    ],
)
def test_penalties_keep_drafting_lossless(
    drafter: str,
    temperature: float,
    cut: dict[str, Any],
    shared: Engine,
    run: Run,
    plain: Callable[..., list[list[int]]],
) -> None:
    expected = plain(32, temperature, **PENALTIES | cut)
    drafted = run(drafter, 32, temperature, **PENALTIES | cut)
    assert [r.token_ids for r in drafted] == expected
    if drafter == "suffix":  # the others guess where it pays on this machine
        assert sum(r.stats["drafting"]["accepted"] for r in drafted) > 0
    assert expected != plain(32, temperature, **cut)
    assert not any(9 in tokens for tokens in expected)
    shared.check_integrity()


def test_log_probabilities_are_the_models_own_under_penalties() -> None:
    engine = drafting_engine()
    banned, plain = (
        generate(engine, [prompt()], SamplingParams(max_tokens=1, logprobs=3, drafter="none", logit_bias=bias))[0]
        for bias in (((3, 100.0),), ())
    )
    assert banned.token_ids == [3] != plain.token_ids
    assert banned.logprobs[0].top == plain.logprobs[0].top


def test_a_draft_model_equal_to_the_target_is_accepted(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "asks", lambda pace: True)  # such a draft model is never worth its time
    engine = drafting_engine(tmp_path)
    params = SamplingParams(max_tokens=24, drafter="draft_model:depth=4", ignore_eos=True)
    result = generate(engine, [prompt()], params)[0]
    assert result.stats["drafting"]["acceptance_rate"] > 0.5
    assert result.stats["decode_steps"] < 16
    assert set(result.sources) == {"draft_model", "target"}


class Adversary(Drafter):
    """Guesses that are right, wrong, doubled or of odd shapes, by a seeded coin."""

    name = "adversary"
    needs_topk = 2

    def __init__(self, truth: list[int], seed: int) -> None:
        self._truth = truth
        self._rng = random.Random(seed)

    def propose(self, state: RequestState, budget: int) -> DraftTree:
        size = self._rng.randrange(0, budget + 1)
        done = len(state.tokens) - state.prompt_length
        tokens, parents, depth = [], [], []
        for node in range(size):
            parent = self._rng.randrange(-1, node) if node else -1
            at = depth[parent] + 1 if parent >= 0 else 0
            right = done + at < len(self._truth) and self._rng.random() < 0.7
            tokens.append(self._truth[done + at] if right else self._rng.randrange(97))
            parents.append(parent)
            depth.append(at)
        return DraftTree.of(tokens, parents, source="adversary")

    def observe(self, state: RequestState, tree: DraftTree, verdict: Verdict, top: TopSuccessors | None) -> None:
        assert top is not None
        assert top.ids.shape == (len(verdict.rows), 2)
        assert tuple(state.tokens[-len(verdict.tokens) :]) == verdict.tokens


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(2))
def test_random_trees_on_ragged_batches_change_nothing(family: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [prompt(1), prompt(2)[:17], prompt(3)[:5]]
    plain = [SamplingParams(max_tokens=20, temperature=0.7 * (i % 2), seed=i, drafter="none") for i in range(3)]
    truth = [r.token_ids for r in generate(make_engine(family), prompts, plain)]
    engine = make_engine(family)
    opened = iter(range(3))

    def build(spec: Any, resources: Any) -> TrackedDrafter:
        i = next(opened)
        return TrackedDrafter(Adversary(truth[i], seed), resources.learned.calibration, resources.vocab_size, 9)

    monkeypatch.setattr("drafters.registry.build", build)
    drafted = [SamplingParams(max_tokens=20, temperature=p.temperature, seed=p.seed, drafter="auto") for p in plain]
    results = generate(engine, prompts, drafted)
    assert [r.token_ids for r in results] == truth
    assert sum(r.stats["drafting"]["accepted"] for r in results) > 0
    assert [r.stats["drafting"]["failures"] for r in results] == [0, 0, 0]  # else `observe` found something wrong
    engine.check_integrity()


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
def test_a_node_has_the_logits_of_its_path_run_as_a_chain(family: str) -> None:
    engine = make_engine(family)
    tokens = prompt()[:40]
    request = Request("r", tokens, SamplingParams())
    request.pages = engine.blocks.allocate(8)
    tree = DraftTree.of([5, 6, 7, 8, 9, 6], [-1, -1, 0, 2, 0, 4])
    with torch.inference_mode():
        engine.runner.run([Slice(request, 0, tokens[:-1], samples=False)])
        got = engine.runner.run([Slice(request, 39, tokens[-1:], samples=True, tree=tree)]).logits
    for node in range(len(tree)):
        path = tokens + [int(tree.tokens[n]) for n in tree.path_to(node)]
        other = make_engine(family)
        chain = Request("c", path, SamplingParams())
        chain.pages = other.blocks.allocate(8)
        want = other.runner.run([Slice(chain, 0, path, samples=True)]).logits[0]
        assert (got[node + 1] - want).abs().max() < 1e-9


def opened(engine: Engine, token_ids: list[int]) -> Any:
    """A session of the engine's own model that has read these tokens."""
    model = engine.drafting.resources.self_model
    assert model is not None
    session = model.open(token_ids)
    while not session.ready:
        assert engine.step() == []
    return session


def test_a_growing_draft_session_equals_a_fresh_prefill() -> None:
    engine, fresh = make_engine(), make_engine()
    tokens = prompt()[:35]
    session = opened(engine, tokens[:-1])
    session.advance(tokens[-1:])
    session.extend([5, 6], [-1, -1])
    deep = session.extend([7, 8], [1, 2])
    want = opened(fresh, tokens).advance([6, 7])[-1], opened(fresh, tokens).advance([6, 7, 8])[-1]
    assert torch.allclose(deep[0], want[0], atol=1e-9)
    assert torch.allclose(deep[1], want[1], atol=1e-9)
    session.commit([1, 2])
    assert session.length == 37
    after = session.advance([9])[-1]
    assert torch.allclose(after, opened(fresh, [*tokens, 6, 7]).advance([9])[-1], atol=1e-9)
    session.close()
    session.close()
    engine.check_integrity()


RAG = "rag:context=200,chunk=16"


@pytest.mark.parametrize("drafter", [RAG, "draft_model", f"{RAG},target_mix=3"])
def test_a_draft_prompt_is_read_in_chunks_beside_others(drafter: str, tmp_path: Any) -> None:
    """No step is longer than its budget, another client's row runs in each, and the request goes on meanwhile."""
    engine = drafting_engine(tmp_path)
    rows: list[int] = []

    def counted(run: Any) -> Any:
        def counting(slices: list[Slice]) -> Any:
            rows[-1] += sum(part.num_rows for part in slices)
            return run(slices)

        return counting

    separate = engine.drafting.resources.draft_model
    for runner in (engine.runner, separate.runner):  # type: ignore[union-attr]
        runner.run = counted(runner.run)
    plain = {"drafter": "none", "ignore_eos": True}
    other = engine.add_request(prompt(1), SamplingParams(max_tokens=60, **plain))
    params = SamplingParams(max_tokens=30, drafter=drafter, ignore_eos=True)
    drafted = engine.add_request(prompt(2) + prompt(3) + prompt(4), params)
    request, lossy = engine._requests[drafted], "target_mix" in drafter
    found: list[int] = []
    while not request.num_output:
        rows.append(0)
        engine.step()
    while not (sessions := engine.lent.sessions + separate.lent.sessions) or not sessions[0].ready:  # type: ignore[union-attr]
        rows.append(0)
        found.append(request.num_output)
        assert {other} <= {output.request_id for output in engine.step()}
    assert len(found) >= 3
    assert max(rows) <= 64
    assert (request.num_output > found[0]) != lossy  # such a one has to wait for its other distribution
    while request.finish_reason is None:
        rows.append(0)
        engine.step()
    assert request.finish_reason == "length"
    engine.check_integrity()


def test_a_lossy_drafter_that_finds_no_room_fails_its_request() -> None:
    engine = make_engine(pages=8)
    params = SamplingParams(max_tokens=30, drafter="rag:target_mix=3", ignore_eos=True)
    name = engine.add_request(prompt()[:90], params, draft_sources=DraftSources(prompt=prompt(1)[:80]))
    outputs = [output for _ in range(12) for output in engine.step()]
    assert outputs[-1].request_id == name
    assert "no page is left for what its drafter must read" in outputs[-1].error
    engine.check_integrity()
    assert engine.blocks.num_owned == 0


def test_sessions_give_way_before_requests_are_preempted() -> None:
    engine = make_engine(pages=12)
    result = generate(engine, [prompt()], SamplingParams(max_tokens=60, drafter="rag", ignore_eos=True))[0]
    expected = generate(make_engine(), [prompt()], SamplingParams(max_tokens=60, drafter="none", ignore_eos=True))[0]
    assert result.token_ids == expected.token_ids
    assert engine.scheduler.num_preemptions == 0
    engine.check_integrity()


@pytest.mark.parametrize(
    ("drafter", "words"),
    [
        ("nonsense", "unknown drafter 'nonsense'"),
        ("suffix:colour=red", "no option 'colour'"),
        ("rag:target_mix=-1", "target_mix"),
        ("draft_model", "needs a draft model"),
        ("datastore", "needs a library"),
        ("suffix:budget=65", "a tree of 65 nodes is larger than the 64"),
    ],
)
def test_bad_drafters_are_refused_before_any_work(drafter: str, words: str) -> None:
    engine = make_engine()
    with pytest.raises(InvalidRequest, match=words):
        engine.add_request([3, 4], SamplingParams(drafter=drafter))
    assert not engine.has_work


def test_a_bad_default_drafter_is_refused_before_the_model_is_looked_for() -> None:
    with pytest.raises(InvalidRequest, match="unknown drafter 'bogus'"):
        Engine.from_pretrained("no-such-model", drafter="bogus")


def test_a_tree_larger_than_the_pool_is_refused() -> None:
    engine = make_engine(pages=2)
    with pytest.raises(InvalidRequest, match="larger than the 31"):
        engine.add_request([3, 4], SamplingParams(drafter="suffix:budget=40"))
    result = generate(engine, [[3, 4, 3, 4]], SamplingParams(max_tokens=4, drafter="suffix"))[0]
    assert len(result.token_ids) <= 4


def test_a_drafter_that_raises_is_switched_off_and_the_answer_is_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = generate(make_engine(), [prompt()], SamplingParams(max_tokens=12, drafter="none"))[0]
    monkeypatch.setattr("drafters.sources.suffix.Suffix.propose", lambda *a: 1 / 0)
    result = generate(make_engine(), [prompt()], SamplingParams(max_tokens=12, drafter="suffix"))[0]
    assert result.token_ids == expected.token_ids
    assert result.stats["drafting"]["failures"] == 1


def test_target_mix_samples_the_declared_distribution_wherever_blocks_end() -> None:
    """η > 0 is lossy, but its tokens must not depend on how many were drafted at a time, nor on room for it."""

    def run(depth: int, max_tokens: int) -> list[int]:
        drafter = f"rag:target_mix=5,depth={depth},context=64"
        params = SamplingParams(max_tokens=max_tokens, temperature=1.0, seed=3, drafter=drafter, ignore_eos=True)
        return generate(make_engine(), [prompt()], params)[0].token_ids

    longest = run(5, 24)
    assert run(1, 24) == longest
    for most in (5, 8, 11, 16):
        assert run(5, most) == longest[:most]


def test_kv_after_drafting_is_that_of_a_fresh_prefill() -> None:
    engine = make_engine()
    params = SamplingParams(max_tokens=30, drafter="suffix", ignore_eos=True)
    request_id = engine.add_request(prompt(), params)
    for _ in range(8):
        engine.step()
    request = engine._requests[request_id]
    order = np.arange(request.num_computed)
    slots = engine.runner._slots(request.pages, order)
    fresh = make_engine()
    other = Request("f", request.token_ids[: request.num_computed], SamplingParams())
    other.pages = fresh.blocks.allocate(len(request.pages))
    fresh.runner.run([Slice(other, 0, other.token_ids, samples=True)])
    want = fresh.runner._slots(other.pages, order)
    for layer in range(3):
        for got, expected in zip(
            engine.runner.pool.groups[0].read(layer, slots, torch.float64),
            fresh.runner.pool.groups[0].read(layer, want, torch.float64),
            strict=True,
        ):
            assert torch.allclose(got, expected, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.0, 0.3])  # a random model at more repeats too little to draft from
def test_rows_are_independent_in_float32_too(temperature: float) -> None:
    """The logits behind every emitted token are the same bits, drafted or not: near ties cannot fall otherwise."""
    from sparse_attn.kernels import select_kernels

    if not select_kernels(torch.device("cpu"), torch.float32).row_invariant:
        pytest.skip("the C++ kernels cannot be built here")
    wide = {"hidden_size": 64, "intermediate_size": 128}

    def run(drafter: str) -> list[Any]:
        model = make_model(dtype=torch.float32, **wide)
        engine = Engine(prepare("llama", model), EngineConfig(kv_memory=8 << 20, page_size=16))
        params = SamplingParams(
            max_tokens=40, temperature=temperature, seed=1, drafter=drafter, logprobs=0, ignore_eos=True
        )
        return generate(engine, [prompt(i) for i in range(3)], params)

    plain, drafted = run("none"), run("recycling")
    assert sum(r.stats["drafting"]["drafted"] for r in drafted) > 40
    for one, other in zip(plain, drafted, strict=True):
        assert one.token_ids == other.token_ids
        assert [x.logprob for x in one.logprobs] == [x.logprob for x in other.logprobs]
