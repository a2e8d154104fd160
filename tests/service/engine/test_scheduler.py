"""Scheduler, block manager and prefix cache as one state machine; no model."""

from __future__ import annotations

from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from drafters.tree import EMPTY, DraftTree
from drafters.verify import Verdict, verify
from service.engine.block_manager import GONE, BlockManager, OutOfPages
from service.engine.request import FinishReason, Request, SamplingParams
from service.engine.scheduler import Scheduler, SchedulerConfig
from sparse_attn.kv.lifetimes import HeadGroups, PageLifetimes

PAGE = 4
STOP = 9
STREAMING = HeadGroups(((),), sink=3, local=6, prefill_local=9, keep_all_below=0, slack=1)


def next_token(tokens: Sequence[int]) -> int:
    """A deterministic model: the token depends on everything before it."""
    return (sum((i + 3) * t for i, t in enumerate(tokens)) + len(tokens)) % 9


def is_stop(request: Request, token: int) -> bool:
    return token == STOP


class EngineMachine(RuleBasedStateMachine):
    """Add, step, fail, abort in any order: no page leaks, no token is lost, what pages hold is what was computed."""

    @initialize(pages=st.integers(6, 20), running=st.integers(1, 5), draft=st.integers(0, 3), groups=st.integers(1, 2))
    def setup(self, pages: int, running: int, draft: int, groups: int) -> None:
        self.blocks = BlockManager(pages * groups, PAGE, num_groups=groups)
        config = SchedulerConfig(max_step_tokens=10, max_running=running, max_draft=3)
        self.scheduler = Scheduler(config, self.blocks)
        self.draft = draft
        self.count = 0
        self.content: dict[tuple[int, int], list[int | None]] = {}  # what a page of a head group physically holds
        self.live: list[Request] = []
        self.finished: list[Request] = []

    @rule(head=st.integers(0, 2), length=st.integers(1, 60), new=st.integers(1, 12), streams=st.booleans())
    def add(self, head: int, length: int, new: int, streams: bool) -> None:
        """Prompts of the same head share a prefix of any length; some requests drop pages of the last head group."""
        prompt = [(head + i * i) % 7 for i in range(length)]
        self.count += 1
        request = Request(f"r{self.count}", prompt, SamplingParams(max_tokens=new))
        if streams:
            request.salt, last = "streams", self.blocks.num_groups - 1
            request.lifetimes = PageLifetimes(frozenset({last}), STREAMING, length, PAGE, PAGE)
        request.draft_budget = self.draft
        if self.scheduler.most_pages(request.max_len, request.lifetimes) <= self.blocks.num_pages:
            self.scheduler.add(request)
            self.live.append(request)

    @rule(guess=st.integers(0, 2), fails=st.booleans())
    def step(self, guess: int, fails: bool) -> None:
        had_work = self.scheduler.has_work
        before = {r.id: list(r.token_ids) for r in self.live}
        step = self.scheduler.schedule()
        assert step.num_rows <= 10 + self.draft * 5 + 5
        if not had_work:
            assert not step
            return
        assert step, "work, and nothing scheduled"
        if fails:
            self.scheduler.rollback(step)
            assert {r.id: r.token_ids for r in self.live} == before
            return
        verdicts: dict[str, Verdict] = {}
        for part in step.slices:
            request = part.request
            self.check_context(request)
            if part.samples and part.draft_budget and guess:
                part.tree = self.guess(request, min(part.draft_budget, guess), right=guess == 1)
            ids = request.token_ids[: part.start] + part.token_ids
            self.write(request, part.start, part.token_ids)
            if not part.samples:
                continue
            tree = part.tree if part.tree is not None else EMPTY
            choices = []
            for row in range(len(tree) + 1):
                path = tree.path_to(row - 1) if row else []
                choices.append(next_token(ids + [int(tree.tokens[n]) for n in path]))
            verdict = verdicts[request.id] = verify(tree, choices)
            self.write(request, len(ids), [int(tree.tokens[n]) for n in verdict.path])
        self.scheduler.commit(step, verdicts, is_stop)
        for request in list(self.live):
            if request.finish_reason is not None:
                self.scheduler.finish(request, request.finish_reason)
                self.live.remove(request)
                self.finished.append(request)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.live))
        self.live.remove(request)
        self.scheduler.finish(request, FinishReason.ABORT)
        assert not request.pages

    @invariant()
    def pages_are_accounted_for(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()

    @invariant()
    def no_request_holds_more_than_was_said_at_the_door(self) -> None:
        for request in self.scheduler.running if hasattr(self, "scheduler") else []:
            held = sum(page != GONE for place in request.pages for page in place)
            assert held <= self.scheduler.most_pages(request.max_len, request.lifetimes)

    @invariant()
    def outputs_are_those_of_the_model(self) -> None:
        for request in getattr(self, "live", []) + getattr(self, "finished", []):
            tokens = request.token_ids[: request.prompt_len]
            for token in request.output_ids:
                assert token == next_token(tokens)
                tokens = [*tokens, token]
            assert request.num_output <= request.params.max_tokens

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(2000):  # no deadlock: everything ends
            if not self.scheduler.has_work:
                break
            self.step(0, False)
        assert not self.live
        assert self.blocks.num_owned == 0

    def guess(self, request: Request, size: int, right: bool) -> DraftTree:
        tokens = list(request.token_ids)
        for _ in range(size):
            tokens.append(next_token(tokens) if right else 8)
        return DraftTree.chain(tokens[len(request.token_ids) :])

    def write(self, request: Request, start: int, tokens: Sequence[int]) -> None:
        for position, token in enumerate(tokens, start):
            for group, page in enumerate(request.pages[position // PAGE]):
                assert page != GONE
                self.content.setdefault((page, group), [None] * PAGE)[position % PAGE] = token

    def check_context(self, request: Request) -> None:
        """What the request will attend to is its own past, in every head group, though it may lie in shared pages."""
        for group in range(self.blocks.num_groups):
            gone = request.gone(group, request.num_computed)
            for p in range(request.num_computed):
                page = request.pages[p // PAGE][group]
                assert (page == GONE) == (p // PAGE in gone)
                assert page == GONE or self.content[page, group][p % PAGE] == request.token_ids[p]


def test_state_machine_of_scheduler_pages_and_prefix_cache() -> None:
    run_state_machine_as_test(EngineMachine, settings=settings(max_examples=150, stateful_step_count=40, deadline=None))


def drive(scheduler: Scheduler, requests: list[Request], limit: int = 1000) -> list[list[str]]:
    """Step to the end with the toy model; the ids scheduled in each step."""
    order = []
    for _ in range(limit):
        step = scheduler.schedule()
        if not step:
            break
        order.append([p.request.id for p in step.slices])
        verdicts = {p.request.id: verify(EMPTY, [next_token(p.request.token_ids)]) for p in step.slices if p.samples}
        scheduler.commit(step, verdicts, is_stop)
        for request in requests:
            if request.finish_reason and request in scheduler.running:
                scheduler.finish(request, request.finish_reason)
    return order


def request(name: str, prompt: list[int], new: int = 4) -> Request:
    return Request(name, prompt, SamplingParams(max_tokens=new))


def scheduler(pages: int = 64, **options: int) -> Scheduler:
    config = SchedulerConfig(**{"max_step_tokens": 16, **options})
    return Scheduler(config, BlockManager(pages, PAGE))


def test_a_long_prompt_does_not_starve_a_short_one() -> None:
    sched = scheduler(pages=200)
    long, short = request("long", [i % 7 for i in range(400)]), request("short", [3, 1, 4, 1, 5, 9])
    for r in (long, short):
        sched.add(r)
    order = drive(sched, [long, short])
    assert any("short" in ids for ids in order[:2])


def test_the_second_of_two_equal_prompts_waits_for_the_first_and_reads_its_pages() -> None:
    sched = scheduler()
    first, second = (request(n, list(range(7)) * 8) for n in ("first", "second"))
    for r in (first, second):
        sched.add(r)
    drive(sched, [first, second])
    assert first.cached_tokens == 0
    assert second.cached_tokens == (len(second.token_ids[: second.prompt_len]) - 1) // PAGE * PAGE


def test_an_unrelated_request_is_not_held_up_by_a_shared_prefix_under_way() -> None:
    sched = scheduler()
    first, second = (request(n, list(range(7)) * 8) for n in ("first", "second"))
    other = request("other", [8, 8, 8])
    for r in (first, second, other):
        sched.add(r)
    assert "other" in drive(sched, [first, second, other])[0]


def test_a_miss_says_why() -> None:
    blocks = BlockManager(4, PAGE)
    tokens = list(range(12))
    assert blocks.match(tokens[:3], "").miss_reason == f"prompt is shorter than a page of {PAGE} tokens"
    assert blocks.match(tokens, "").miss_reason == "never seen at token 0"
    pages = blocks.allocate(3)
    blocks.publish(tokens, pages, 0, "")
    blocks.release(pages)
    hit = blocks.match(tokens + [1], "")
    assert hit.pages == pages
    assert hit.miss_reason is None
    blocks.release(hit.pages)
    differs = blocks.match(tokens[:4] + [7] * 8, "")
    assert (differs.pages, differs.miss_reason) == (pages[:1], "differs at token 4")
    blocks.release(differs.pages)
    assert blocks.match(tokens, "another policy").miss_reason == "never seen at token 0"
    blocks.release(blocks.allocate(4))  # evicts all
    assert blocks.match(tokens, "").miss_reason == "evicted at token 0"


def test_the_tail_of_a_prefix_is_evicted_first() -> None:
    blocks = BlockManager(3, PAGE)
    tokens = list(range(12))
    pages = blocks.allocate(3)
    blocks.publish(tokens, pages, 0, "")
    blocks.release(pages)
    blocks.allocate(1)
    assert blocks.match(tokens + [0], "").pages == pages[:2]


def test_allocation_is_all_or_nothing() -> None:
    blocks = BlockManager(3, PAGE)
    blocks.allocate(2)
    with pytest.raises(OutOfPages):
        blocks.allocate(2)
    assert blocks.num_available == 1


def ring(length: int) -> PageLifetimes:
    """A sequence whose second head group keeps a page of sinks and the last two."""
    return PageLifetimes(frozenset({1}), HeadGroups(((),), PAGE, 2 * PAGE, 2 * PAGE, 0, 1), length, PAGE, PAGE)


def test_a_prefix_is_found_where_the_window_before_it_is_still_there() -> None:
    blocks = BlockManager(24, PAGE, num_groups=2)
    tokens = list(range(10 * PAGE))
    gone = ring(len(tokens)).gone
    places = blocks.allocate(10)
    blocks.publish(tokens, places, 0, "")
    blocks.drop(places, 1, gone(1, len(tokens)))
    assert [place[1] == GONE for place in places] == [False] + [True] * 7 + [False] * 2
    blocks.release(places)
    blocks.release(blocks.allocate(4))  # evicts what was dropped: it was given back first
    hit = blocks.match([*tokens, 0], "", gone)
    assert hit.pages == places
    assert hit.miss_reason is None
    blocks.release(hit.pages)
    # The window before token 24 was dropped and evicted; that before token 4 is the sink's own page.
    shorter = blocks.match([*tokens[: 6 * PAGE], 99], "", ring(6 * PAGE + 1).gone)
    assert len(shorter.pages) == 1
    assert shorter.miss_reason == "evicted at token 4"
    blocks.release(shorter.pages)
    blocks.check_integrity([])


def test_a_sequence_that_reads_all_finds_no_prefix_with_holes() -> None:
    blocks = BlockManager(24, PAGE, num_groups=2)
    tokens = list(range(10 * PAGE))
    places = blocks.allocate(10)
    blocks.publish(tokens, places, 0, "")
    dropped = [place[1] for place in places[3:5]]
    blocks.drop(places, 1, [3, 4, 3])
    blocks.release(blocks.allocate(3))  # four pages are free, the dropped ones go next
    hit = blocks.match([*tokens, 0], "")
    assert [place[0] for place in hit.pages] == [place[0] for place in places[: len(hit.pages)]]
    assert all(GONE not in place for place in hit.pages)
    assert len(hit.pages) == 3
    assert all(page not in blocks._published for page in dropped)
    blocks.check_integrity([places, hit.pages])


def test_a_long_request_that_streams_fits_where_another_does_not() -> None:
    config = SchedulerConfig(max_step_tokens=PAGE, max_draft=0)
    sched = Scheduler(config, BlockManager(60, PAGE, num_groups=2))
    long = request("long", [i % 7 for i in range(40 * PAGE)])
    assert sched.most_pages(long.max_len, None) == 82
    long.lifetimes = ring(40 * PAGE)
    assert sched.most_pages(long.max_len, long.lifetimes) <= 60
    sched.add(long)
    drive(sched, [long])
    assert long.num_output == 4
    assert sched.num_preemptions == 0
    sched.check_integrity()
