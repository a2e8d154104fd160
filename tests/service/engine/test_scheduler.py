"""Scheduler, block manager and prefix cache as one state machine; no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from unittest.mock import Mock

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
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
from retrieval.types import DEFAULT_OWNER
from service.engine import block_manager
from service.engine.block_manager import GONE, BlockManager, OutOfPages, PageDigests
from service.engine.finish import Emitted, FinishReason, StopChecker
from service.engine.params import SamplingParams
from service.engine.request import Priority, Reading, Request
from service.engine.scheduler import TURN, Scheduler, SchedulerConfig
from service.engine.step import Step
from sparse_attn.kv.head_groups import HeadGroups
from sparse_attn.kv.lifetimes import PageLifetimes

PAGE = 4
STOP = 9
STREAMING = HeadGroups(((),), sink=3, local=6, prefill_local=9, keep_all_below=0, slack=1)


def next_token(tokens: Sequence[int]) -> int:
    """A deterministic model: the token depends on everything before it."""
    return (sum((i + 3) * t for i, t in enumerate(tokens)) + len(tokens)) % 9


def kept(verdicts: dict[str, Verdict], step: Step) -> dict[str, Emitted]:
    """What each request keeps of its verdict."""
    of = {seq.request.id: seq.request for seq in step.slices}
    return {
        name: Emitted(list(verdict.tokens))
        if of[name].mixture is not None
        else StopChecker(frozenset({STOP}), of[name].params.max_tokens).take(verdict.tokens, of[name].num_output)
        for name, verdict in verdicts.items()
    }


def most_rows(step: Step) -> int:
    """Rows of a step whose drafts are as large as they may be."""
    return sum(len(seq.token_ids) + seq.draft_budget for seq in step.slices)


def digests(salt: str = "") -> PageDigests:
    return PageDigests(salt, PAGE)


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

    @rule(
        head=st.integers(0, 2),
        length=st.integers(1, 60),
        new=st.integers(1, 12),
        kind=st.sampled_from(["dense", "streams", "mixed", "read", "read for its states"]),
        owner=st.sampled_from(["ann", "bob", "cid"]),
    )
    def add(self, head: int, length: int, new: int, kind: str, owner: str) -> None:
        """Prompts of the same head share a prefix of any length; some requests drop pages of the last head group, some
        are guessed on and cut back, some only read."""
        prompt = [(head + i * i) % 7 for i in range(length)]
        self.count += 1
        reading = {"read": Reading(priority=Priority.DRAFT), "read for its states": Reading(on_chunk=lambda *_: None)}
        params = SamplingParams(max_tokens=new, owner=owner)
        request = Request(f"r{self.count}", prompt, params, reading=reading.get(kind))
        if kind == "streams":
            request.salt, last = "streams", self.blocks.num_groups - 1
            request.lifetimes = PageLifetimes(frozenset({last}), STREAMING, length, PAGE, PAGE)
        if kind == "mixed":
            request.mixture = Mock()
        else:
            request.draft_budget = self.draft
        if self.scheduler.most_pages(request.max_len, request.lifetimes) <= self.blocks.num_pages:
            self.scheduler.add(request)
            self.live.append(request)

    @rule(guess=st.integers(0, 2), fails=st.booleans())
    def step(self, guess: int, fails: bool) -> None:
        parked = [request for request in self.live if request.parked]
        must_run = any(r in self.scheduler.running and not r.parked for r in self.live)
        before = {r.id: list(r.token_ids) for r in self.live}
        step = self.scheduler.schedule()
        assert most_rows(step) <= 10
        assert step or step.preempted or not must_run, "a request runs, and nothing is scheduled"
        assert step or parked or not self.live, "a request waits for nobody, and nothing is scheduled"
        if not step:
            return
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
            if request.mixture is not None:
                may = guess and request.num_output + request.num_provisional + 1 < request.params.max_tokens
                token = next_token(ids) if guess == 1 else 8
                verdicts[request.id] = Verdict((), (token,) if may else ())
                continue
            tree = part.tree if part.tree is not None else EMPTY
            choices = []
            for row in range(len(tree) + 1):
                path = tree.path_to(row - 1) if row else []
                choices.append(next_token(ids + [int(tree.tokens[n]) for n in path]))
            verdict = verdicts[request.id] = verify(tree, choices)
            self.write(request, len(ids), [int(tree.tokens[n]) for n in verdict.path])
        self.scheduler.commit(step, kept(verdicts, step))
        for request in list(self.live):
            if request.reading is not None and not request.num_pending:
                request.finish_reason = FinishReason.STOP
            self.end(request)

    @precondition(lambda self: any(request.parked for request in self.live))
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        self.settle_one(data.draw(st.sampled_from([request for request in self.live if request.parked])))

    def settle_one(self, request: Request) -> None:
        """A round's guesses up to the first that is wrong, and the true token there."""
        true: list[int] = []
        for guess in [*request.token_ids[request.num_certain :], None]:
            true.append(next_token([*request.token_ids[: request.num_certain], *true]))
            if guess != true[-1]:
                break
        checker = StopChecker(frozenset({STOP}), request.params.max_tokens)
        self.scheduler.settle(request, checker.take(true, request.num_output))
        self.end(request)

    def end(self, request: Request) -> None:
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
            for request in [request for request in self.live if request.parked]:
                self.settle_one(request)
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
    run_state_machine_as_test(EngineMachine, settings=settings(max_examples=50, stateful_step_count=40))


def drive(scheduler: Scheduler, requests: list[Request], limit: int = 1000) -> list[list[str]]:
    """Step to the end with the toy model; the ids scheduled in each step."""
    order = []
    for _ in range(limit):
        step = scheduler.schedule()
        if not step:
            break
        order.append([p.request.id for p in step.slices])
        verdicts = {p.request.id: verify(EMPTY, [next_token(p.request.token_ids)]) for p in step.slices if p.samples}
        scheduler.commit(step, kept(verdicts, step))
        for request in requests:
            if request.finish_reason and request in scheduler.running:
                scheduler.finish(request, request.finish_reason)
    return order


def request(name: str, prompt: list[int], new: int = 4, owner: str = DEFAULT_OWNER) -> Request:
    return Request(name, prompt, SamplingParams(max_tokens=new, owner=owner))


def scheduler(pages: int = 64, **options: int) -> Scheduler:
    config = SchedulerConfig(**{"max_step_tokens": 16, "max_running": 8, **options})
    return Scheduler(config, BlockManager(pages, PAGE))


def test_a_long_prompt_does_not_starve_a_short_one() -> None:
    sched = scheduler(pages=200)
    long, short = request("long", [i % 7 for i in range(400)]), request("short", [3, 1, 4, 1, 5, 9])
    for r in (long, short):
        sched.add(r)
    order = drive(sched, [long, short])
    assert any("short" in ids for ids in order[:2])


def of_owners(sched: Scheduler, **counts: int) -> list[Request]:
    """So many endless requests of each owner, in this order, each with a prompt of its own."""
    made = []
    for owner, count in counts.items():
        for n in range(count):
            made.append(request(f"{owner}{n}", [1000 + len(made) + len(sched.running)] * 5, 10_000, owner))
            sched.add(made[-1])
    return made


def running(sched: Scheduler) -> dict[str, int]:
    return Counter(one.params.owner for one in sched.running)


def test_owners_take_turns_at_the_places_of_an_engine() -> None:
    sched = scheduler(pages=4000, max_step_tokens=64, max_running=6)
    of_owners(sched, bob=20, ann=2, cid=9)
    step_once(sched)
    assert running(sched) == {"bob": 2, "ann": 2, "cid": 2}
    assert [one.id for one in sched.running if one.params.owner == "bob"] == ["bob0", "bob1"]
    assert sched.num_preemptions == 0


def test_endless_answers_of_one_owner_make_room_for_anothers() -> None:
    sched = scheduler(pages=4000, max_step_tokens=64, max_running=6)
    of_owners(sched, bob=20)
    for _ in range(5):
        step_once(sched)
    assert running(sched) == {"bob": 6}
    hers = request("ann", [7] * 9, 4, "ann")
    sched.add(hers)
    for _ in range(4):
        step_once(sched)
    assert hers.num_output == 4
    assert hers.preemptions == 0
    step_once(sched)
    assert running(sched) == {"bob": 6}
    assert sched.num_preemptions == 1
    of_owners(sched, ann=20)
    for _ in range(20):
        step_once(sched)
    assert running(sched) == {"bob": 3, "ann": 3}
    assert sched.num_preemptions == 4, "nobody is displaced for what another has no more of"
    sched.check_integrity()


def test_where_every_place_has_an_owner_of_its_own_they_go_round() -> None:
    sched = scheduler(pages=4000, max_step_tokens=64, max_running=3)
    endless = of_owners(sched, ann=1, bob=1, cid=1, dan=1, eve=1)
    for _ in range(TURN):
        step_once(sched)
    assert running(sched) == {"ann": 1, "bob": 1, "cid": 1}
    short = request("fay", [7] * 9, 4, "fay")
    sched.add(short)
    for _ in range(4 * TURN):
        step_once(sched)
    assert short.num_output == 4
    served = [one.num_output for one in endless]
    assert min(served) >= 2 * TURN
    assert max(served) - min(served) <= TURN + 4, "an equal share for each"
    sched.check_integrity()


def test_an_answer_that_holds_all_pages_makes_room_for_anothers_and_they_do_not_displace_each_other_for_ever() -> None:
    sched = scheduler(pages=16, max_step_tokens=64, max_running=6)
    long = request("bob", [7] * 58, 3, "bob")
    sched.add(long)
    step_once(sched)
    hers, again = (request(name, [token] * 20, 5, "ann") for name, token in (("ann", 8), ("again", 9)))
    for one in (hers, again):
        sched.add(one)
    order = drive(sched, [long, hers, again], limit=60)
    assert all(one.num_output for one in (long, hers, again))
    assert all(one.finish_reason for one in (long, hers, again))
    assert len(order) < 60
    assert "bob" not in order[2]
    assert hers.preemptions == 0
    assert long.preemptions <= 2


def test_a_step_is_short_while_another_waits_for_tokens_however_long_the_prompt_behind_which_it_stands() -> None:
    sched = scheduler(pages=4000, max_step_tokens=512, max_running=6)
    long = request("bob", [7] * 9000, 4, "bob")
    sched.add(long)
    step = step_once(sched)
    assert len(step.slices[0].token_ids) == 512
    sched.observe(step, 2.0)  # 512 rows behind nothing take two seconds
    assert len(step_once(sched).slices[0].token_ids) == 512, "he is alone"
    hers = request("ann", [8] * 9, 50, "ann")
    sched.add(hers)
    for _ in range(20):
        step = step_once(sched)
        work = sum(len(seq.token_ids) * (seq.start + 2048) for seq in step.slices if seq.request is long)
        assert 0 < work <= 512 * 2048 / 2.0 * 0.25 + PAGE * (long.num_computed + 2048)
        assert hers in [seq.request for seq in step.slices]
    long.draft_budget = hers.draft_budget = 200
    while not long.decodes:
        long.num_computed += 1  # as if it were read
    step = sched.schedule()
    assert {seq.request.id: seq.draft_budget for seq in step.slices}["ann"] <= 11
    sched.rollback(step)
    sched.finish(hers, FinishReason.STOP)
    hers = request("another", [9] * 600, 4, "bob")
    sched.add(hers)
    assert max(len(seq.token_ids) for seq in step_once(sched).slices) > 300


def test_one_owner_alone_is_displaced_by_nothing() -> None:
    sched = scheduler(pages=4000, max_step_tokens=64, max_running=3)
    of_owners(sched, bob=9)
    for _ in range(9):
        step_once(sched)
    assert [one.id for one in sched.running] == ["bob0", "bob1", "bob2"]
    assert sched.num_preemptions == 0


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
    assert blocks.match(tokens[:3], digests()).miss_reason == f"prompt is shorter than a page of {PAGE} tokens"
    assert blocks.match(tokens, digests()).miss_reason == "never seen at token 0"
    pages = blocks.allocate(3)
    blocks.publish(tokens, len(tokens), pages, 0, digests())
    blocks.release(pages)
    hit = blocks.match(tokens + [1], digests())
    assert hit.pages == pages
    assert hit.miss_reason is None
    blocks.release(hit.pages)
    differs = blocks.match(tokens[:4] + [7] * 8, digests())
    assert (differs.pages, differs.miss_reason) == (pages[:1], "differs at token 4")
    blocks.release(differs.pages)
    assert blocks.match(tokens, digests("another policy")).miss_reason == "never seen at token 0"
    blocks.release(blocks.allocate(4))  # evicts all
    assert blocks.match(tokens, digests()).miss_reason == "evicted at token 0"


def test_the_tail_of_a_prefix_is_evicted_first() -> None:
    blocks = BlockManager(3, PAGE)
    tokens = list(range(12))
    pages = blocks.allocate(3)
    blocks.publish(tokens, len(tokens), pages, 0, digests())
    blocks.release(pages)
    blocks.allocate(1)
    assert blocks.match(tokens + [0], digests()).pages == pages[:2]


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
    blocks.publish(tokens, len(tokens), places, 0, digests())
    blocks.drop(places, 1, gone(1, len(tokens)))
    assert [place[1] == GONE for place in places] == [False] + [True] * 7 + [False] * 2
    blocks.release(places)
    blocks.release(blocks.allocate(4))  # evicts what was dropped: it was given back first
    hit = blocks.match([*tokens, 0], digests(), gone)
    assert hit.pages == places
    assert hit.miss_reason is None
    blocks.release(hit.pages)
    # The window before token 24 was dropped and evicted; that before token 4 is the sink's own page.
    shorter = blocks.match([*tokens[: 6 * PAGE], 99], digests(), ring(6 * PAGE + 1).gone)
    assert len(shorter.pages) == 1
    assert shorter.miss_reason == "evicted at token 4"
    blocks.release(shorter.pages)
    blocks.check_integrity([])


def test_a_sequence_that_reads_all_finds_no_prefix_with_holes() -> None:
    blocks = BlockManager(24, PAGE, num_groups=2)
    tokens = list(range(10 * PAGE))
    places = blocks.allocate(10)
    blocks.publish(tokens, len(tokens), places, 0, digests())
    dropped = [place[1] for place in places[3:5]]
    blocks.drop(places, 1, [3, 4, 3])
    blocks.release(blocks.allocate(3))  # four pages are free, the dropped ones go next
    hit = blocks.match([*tokens, 0], digests())
    assert [place[0] for place in hit.pages] == [place[0] for place in places[: len(hit.pages)]]
    assert all(GONE not in place for place in hit.pages)
    assert len(hit.pages) == 3
    assert all(page not in blocks._published for page in dropped)
    blocks.check_integrity([places, hit.pages])


def test_a_long_request_that_streams_fits_where_another_does_not() -> None:
    config = SchedulerConfig(max_step_tokens=PAGE, max_running=1, max_draft=0)
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


def step_once(sched: Scheduler) -> Step:
    """One step of the toy model, without drafts; what is done is ended."""
    step = sched.schedule()
    verdicts = {s.request.id: verify(EMPTY, [next_token(s.request.token_ids)]) for s in step.slices if s.samples}
    sched.commit(step, kept(verdicts, step))
    for seq in step.slices:
        if seq.request.finish_reason:
            sched.finish(seq.request, seq.request.finish_reason)
    return step


def decoding(sched: Scheduler, count: int, draft: int, new: int) -> None:
    """So many requests that decode from the next step on, each with drafts of that many nodes."""
    for i in range(count):
        one = request(f"decoding{i}", [100 + i], new)
        one.draft_budget = draft
        sched.add(one)
    step_once(sched)
    assert all(r.decodes for r in sched.running)


PROMPTS = st.lists(st.tuples(st.integers(2, 120), st.booleans(), st.integers(0, 30)), min_size=1, max_size=5)


@given(prompts=PROMPTS, decoders=st.integers(0, 19), draft=st.integers(0, 40))
def test_rows_stay_within_the_step_and_every_prompt_is_read_soon(
    prompts: list[tuple[int, bool, int]], decoders: int, draft: int
) -> None:
    """Prompts (length, whether on a grid, step of arrival) beside requests that decode for longer than the bound."""
    sched = scheduler(pages=4000, max_step_tokens=32, max_running=24)
    decoding(sched, decoders, draft, 500)
    soon = 2 * (sum(length for length, _, _ in prompts) // (8 - PAGE + 1) + len(prompts)) + 4
    arrivals = {i: request(f"prompt{i}", [200 + i] * length, 500) for i, (length, _, _) in enumerate(prompts)}
    unread = dict(arrivals)
    for now in range(30 + soon):
        for i, (_, grid, at) in enumerate(prompts):
            if at == now:
                arrivals[i].prefill_grid = 32 * grid
                sched.add(arrivals[i])
        pending = sum(r.num_pending for r in sched.running if not r.decodes)
        decode = {r for r in sched.running if r.decodes}
        step = step_once(sched)
        assert most_rows(step) <= 32
        decoded = sum(1 + seq.draft_budget for seq in step.slices if seq.request in decode)
        assert decoded <= 32 - min(8, pending)
        assert all(len(seq.token_ids) % 32 == 0 or seq.samples for seq in step.slices if seq.request.prefill_grid)
        unread = {i: r for i, r in unread.items() if not r.num_output}
        assert all(now - prompts[i][2] <= soon for i in unread if prompts[i][2] <= now)
    assert not unread


def test_a_prompt_beside_many_large_drafts_is_read() -> None:
    config = SchedulerConfig(max_step_tokens=2048, max_running=64)
    sched = Scheduler(config, BlockManager(2000, 64))
    decoding(sched, 63, 32, 400)
    prompt = request("prompt", [7] * 8000)
    sched.add(prompt)
    for _ in range(20):
        step_once(sched)
    assert prompt.num_output > 0


def test_sixteen_requests_keep_the_largest_drafts_beside_a_prompt() -> None:
    sched = Scheduler(SchedulerConfig(max_step_tokens=2048, max_running=17), BlockManager(2000, 64))
    decoding(sched, 16, 64, 400)
    sched.add(request("prompt", [7] * 8000))
    step = sched.schedule()
    assert [seq.draft_budget for seq in step.slices] == [64] * 16 + [0]
    assert most_rows(step) == 16 * 65 + 960  # the rest of 2048, on a page's border


def test_drafts_give_way_the_largest_first() -> None:
    sched = scheduler(pages=400, max_step_tokens=32, max_running=8)
    decoding(sched, 4, 3, 100)
    for one, draft in zip(sched.running, (1, 20, 3, 20), strict=True):
        one.draft_budget = draft
    sched.add(request("prompt", [7] * 100))
    assert [seq.draft_budget for seq in sched.schedule().slices] == [1, 8, 3, 8, 0]


def test_too_many_running_requests_for_a_step_are_refused() -> None:
    SchedulerConfig(max_step_tokens=32, max_running=24)
    with pytest.raises(ValueError, match="25 requests decode beside prompts in 32 rows"):
        SchedulerConfig(max_step_tokens=32, max_running=25)


@pytest.mark.parametrize("drafts", [0, 3])
def test_a_step_hashes_no_more_tokens_behind_a_long_context(drafts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    blake2b = block_manager.blake2b

    def counting(data: bytes, **options: int) -> object:
        hashed.append(len(data))
        return blake2b(data, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(block_manager, "blake2b", counting)
    most = []
    for length in (40, 4000):
        sched = scheduler(pages=2000, max_step_tokens=4096)
        one = request("one", [i % 7 for i in range(length)], 50)
        one.draft_budget = drafts
        sched.add(one)
        step_once(sched)
        per_step = []
        for _ in range(3 * PAGE):
            hashed.clear()
            step_once(sched)
            per_step.append(sum(hashed))
        most.append(max(per_step))
    assert most == [16 + 8 * PAGE] * 2


def test_a_waiting_request_is_matched_once_a_change_of_the_cache_and_counted_once() -> None:
    sched = scheduler(pages=16, max_step_tokens=64)
    first, second = request("first", [1] * 37, 20), request("second", [1] * 20 + [2] * 20, 4)
    sched.add(first)
    step_once(sched)
    matched: list[int] = []
    match = sched.blocks.match
    sched.blocks.match = lambda *args: (matched.append(sched.blocks.version), match(*args))[1]  # type: ignore[method-assign, func-returns-value]
    held = sched.blocks.allocate(5)
    sched.add(second)
    for _ in range(3 * PAGE):
        step_once(sched)
    assert len(matched) == len(set(matched)) > 1
    assert second in sched.waiting
    assert sched.blocks.queries == 36
    sched.blocks.release(held)
    while second in sched.waiting:
        step_once(sched)
    assert (sched.blocks.queries, sched.blocks.hits) == (36 + 36, 20)
    assert second.cached_tokens == 20
