"""Continuous batching: which tokens of which requests run in the next step.

A step has ``max_step_tokens`` rows, and two invariants hold in every step:

* its rows, the largest drafts included, are never more;
* while there is a prompt to read, or one that may be admitted, decoding leaves `prefill_share` of them to prompts, or
  as many as are left to read.

Decoding requests run first, one pending token and a draft each. `max_running` of them fit beside the share, so only
drafts have to give way: the largest are cut first, until all fit. What is left goes to prompts in chunks: equal shares
over all requests that are prefilling, so that a long prompt cannot starve a short one, in order of arrival; what even
they leave goes to what is read in the background. A chunk that must end on the request's own grid and does not fit
beside the others has the next step to itself, and never two in a row. So every admitted prompt is read in a number of
steps that depends on the lengths of the prompts that run alone.

Owners take turns: of those who wait the one is next whose owner has the fewest running. Where no place, or no page, is
left for it, the youngest request of the owner who has the most makes room, unless it did so more often already: long
answers of one owner keep no other waiting, and no two can displace one another for ever. Where every place has an owner
of its own, they go round: after `TURN` tokens an answer gives its place to an owner who has none. While there are
several owners a step does as much as takes about a quarter of a second, by the pace of those before: two thousand rows
at the end of a long prompt are many seconds, which everybody's next token would wait for.

When pages run out the youngest request of the least priority is preempted: its pages go back, its tokens stay, and it
is computed anew later (mostly from the prefix cache). The oldest request can always take what it needs, and no request
is admitted that the whole pool could not hold, so there is no deadlock; one that can have no pages though it runs alone
fails. A parked request keeps its pages, but is preempted as any other.

No step does work that grows with a context: pages are hashed once, and a waiting request is matched against the prefix
cache again only when that, or the pages that are free, has changed.

Lengths move and pages are freed in ``commit``, ``settle``, ``rollback`` and ``finish`` alone.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from service.engine.block_manager import GONE, BlockManager, OutOfPages, PageDigests, Place
from service.engine.config import prefill_share
from service.engine.finish import Emitted, FinishReason
from service.engine.request import Priority, Request
from service.engine.step import Slice, Step
from sparse_attn.kv.lifetimes import PageLifetimes

SHARED_STEP_S = 0.25
"""of a step's prompts, and of its drafts, about, while there are several owners"""
TURN = 64
"""tokens that an answer has a place for, at least, while owners without one wait"""
ROW = 2048
"""tokens of context whose attention costs as much as the rest of a row, about"""
TELLING = 256
"""rows of a step whose time tells the pace"""


@dataclass(frozen=True)
class SchedulerConfig:
    """Limits of one step.

    Attributes:
        max_step_tokens: rows of one forward.
        max_running: requests that may hold pages at once, those that are only read aside.
        max_draft: nodes of a draft tree.

    Raises:
        ValueError: so many running requests would not leave prompts their share.
    """

    max_step_tokens: int = 2048
    max_running: int = 64
    max_draft: int = 64

    def __post_init__(self) -> None:
        if self.max_running + self.prefill_share > self.max_step_tokens:
            raise ValueError(f"{self.max_running} requests decode beside prompts in {self.max_step_tokens} rows")

    @property
    def prefill_share(self) -> int:
        return prefill_share(self.max_step_tokens)


class Scheduler:
    """The queues and the decisions; no tensors, no model."""

    def __init__(
        self, config: SchedulerConfig, blocks: BlockManager, reclaim: Callable[[], bool] = lambda: False
    ) -> None:
        self.config = config
        self.blocks = blocks
        self._reclaim = reclaim  # frees pages that are lent to others; False where none are
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # by priority, then in order of arrival
        self.num_preemptions = 0
        self._alone: Request | None = None  # whose chunk has the next step to itself
        self._pace: float | None = None  # work a second, see `_work`

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queue a request that the model and the whole pool can hold (`service.engine.admission`)."""
        request.digests = PageDigests(request.salt, self.blocks.page_size)
        self.waiting.append(request)

    def most_pages(self, max_len: int, lifetimes: PageLifetimes | None) -> int:
        """No less than the pages that a request holds at any time; a tree is kept within max_len."""
        groups = range(self.blocks.num_groups)
        if lifetimes is None:
            return len(groups) * self.blocks.pages_for(max_len)
        step = max(self.config.max_step_tokens, self.config.max_draft + 1, self.blocks.page_size)
        return sum(lifetimes.most_pages(group, max_len, step) for group in groups)

    def schedule(self, most_rows: int | None = None) -> Step:
        """Choose the slices of the next forward and reserve their pages, the worst case of a tree included.

        most_rows: where fewer than `SchedulerConfig.max_step_tokens` are left.
        """
        step = Step()
        budget = self.config.max_step_tokens if most_rows is None else most_rows
        if self.waiting:
            self._make_room(step, budget)
        alone, self._alone = self._alone, None
        if alone is not None and alone in self.running and not alone.parked and alone.num_pending > 1:
            self._schedule_chunk(step, alone, self._chunk(alone, budget))
            if step:
                return step
        most_work = self._most_work()
        budget -= self._schedule_decodes(step, budget - self._wanted_by_prompts(), most_work)
        self._admit(step, budget)
        scheduled = {*(seq.request for seq in step.slices), *(request for request, _ in step.failed)}
        reading = [r for r in self.running if r.num_pending and not r.parked and r not in scheduled]
        for background in (False, True):
            some = [r for r in reading if (r.priority is Priority.BACKGROUND) == background]
            budget -= self._schedule_prefill(step, some, budget, most_work)
        return step

    def observe(self, step: Step, seconds: float) -> None:
        """Learn the pace from a step that has run."""
        if sum(len(seq.token_ids) for seq in step.slices) >= TELLING:
            pace = sum(_work(len(seq.token_ids), seq.start) for seq in step.slices) / seconds
            self._pace = pace if self._pace is None else 0.7 * self._pace + 0.3 * pace

    def _most_work(self) -> float:
        """That a step may do. What is read for a request's own draft or blend is read in nobody's name."""
        asked = (r for r in (*self.running, *self.waiting) if r.reading is None or r.priority is Priority.BACKGROUND)
        owners = {request.params.owner for request in asked if request.reading is None or not request.parked}
        return math.inf if len(owners) < 2 or self._pace is None else SHARED_STEP_S * self._pace

    def follow(self, step: Step) -> Step | None:
        """The step behind one of plain decodes whose tokens are not known yet; it takes what they name as given.

        It has those of its requests that do not end with their next token in any case. None where there are none,
        where others are to run too, or where pages are wanting: nobody is preempted for it.
        """
        going_on = [seq for seq in step.slices if seq.request.finish_reason is None]
        for seq in going_on:
            seq.request.ahead = 0
        if self.waiting or self.running != [seq.request for seq in going_on]:
            return None
        behind = Step()
        for seq in going_on:
            request = seq.request
            if request.num_output + 1 >= request.params.max_tokens:
                continue
            try:
                pages = self.blocks.allocate(self.blocks.pages_for(seq.end + 1) - len(request.pages))
            except OutOfPages:
                self.rollback(behind)
                return None
            request.pages += pages
            behind.slices.append(Slice(request, seq.end, [0], True, new_pages=len(pages)))
        for seq in behind.slices:
            seq.request.ahead = 1
        return behind or None

    def commit(self, step: Step, emitted: Mapping[str, Emitted]) -> None:
        """Move lengths on, append the emitted tokens, return the pages that a rejected draft had reserved.

        ``emitted`` is by request id, for every slice that samples.
        """
        for seq in step.slices:
            request = seq.request
            if request.finish_reason is not None:  # failed after the forward; its pages went back then
                continue
            request.num_computed = seq.end
            if seq.samples and request.mixture is not None:
                self._append_guess(request, emitted[request.id])
            elif seq.samples:
                self._append(request, emitted[request.id])
            self._publish(request)
            self._release_spare(request)
            self._drop_gone(request)

    def settle(self, request: Request, emitted: Emitted) -> None:
        """Put the true tokens of a round in the place of the guesses, and let the request run again.

        The true tokens are the guesses up to the first that was wrong, so that what lies in pages is what they say. No
        page is cut that others may read: none was published beyond the tokens that were certain.
        """
        request.token_ids[request.num_certain :] = emitted.token_ids
        request.num_provisional = 0
        request.num_computed = min(request.num_computed, len(request.token_ids) - 1)
        request.parked = False
        request.finish_reason = emitted.reason
        self._publish(request)
        self._release_spare(request)
        self._drop_gone(request)

    def rollback(self, step: Step) -> None:
        """Undo ``schedule``: the pages it took go back, no length has moved."""
        for seq in step.slices:
            request = seq.request
            request.ahead = 0
            if seq.new_pages and request.finish_reason is None:
                taken = request.pages[-seq.new_pages :]
                del request.pages[-seq.new_pages :]
                self.blocks.release(taken)

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request wherever it is; its pages go back at once. Finishing twice is allowed."""
        if request.finish_reason is None:
            request.finish_reason = reason
        self.blocks.release(request.pages)
        request.pages = []
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def check_integrity(self, lent: Sequence[Sequence[Place]] = ()) -> None:
        """Pages in use are exactly those of the running requests and those ``lent`` to others."""
        assert all(not r.pages for r in self.waiting), "a waiting request holds pages"
        self.blocks.check_integrity([*(r.pages for r in self.running), *lent])

    def _append(self, request: Request, emitted: Emitted) -> None:
        request.token_ids.extend(emitted.token_ids)
        # all but the last emitted token lie in pages: the accepted nodes were copied behind the pending token
        request.num_computed += len(emitted.token_ids) - 1
        request.finish_reason = emitted.reason

    def _append_guess(self, request: Request, guess: Emitted) -> None:
        """A row of a round: its guess is provisional, and without one the request parks."""
        request.token_ids.extend(guess.token_ids)
        request.num_provisional += len(guess.token_ids)
        request.parked = not guess.token_ids

    def _release_spare(self, request: Request) -> None:
        """Give back the pages behind the computed tokens and those under way."""
        spare = request.pages[self.blocks.pages_for(request.num_computed + request.ahead) :]
        del request.pages[len(request.pages) - len(spare) :]
        self.blocks.release(spare)

    def _wanted_by_prompts(self) -> int:
        """Rows that decoding must leave: what is still to be read, at most the share."""
        share = self.config.prefill_share
        if any(r.priority is not Priority.BACKGROUND and not self._was_refused(r) for r in self._candidates()[:1]):
            return share
        reading = [r for r in self.running if not (r.parked or r.decodes or r.priority is Priority.BACKGROUND)]
        return min(share, sum(r.num_rows_left for r in reading))

    def _schedule_decodes(self, step: Step, rows: int, most_work: float) -> int:
        """Reserve and add the pending tokens of all decoding requests and their drafts; returns the rows taken."""
        decoding = [request for request in self.running if request.decodes]
        if decoding and most_work < math.inf:
            longest = max(request.num_computed for request in decoding)
            rows = min(rows, max(len(decoding), int(most_work / _work(1, longest))))
        wanted = [self._most_draft(request) for request in decoding]
        for request, draft in zip(decoding, _shared_out(rows - len(decoding), wanted), strict=True):
            if request in step.preempted:  # for an older one
                continue
            start = request.num_computed
            taken = self._reserve(step, request, start + 1 + draft, least=start + 1)
            if taken is None:
                continue
            draft = min(draft, len(request.pages) * self.blocks.page_size - start - 1)
            hidden_rows = _hidden_rows(request, 1, True)
            pending = request.token_ids[-1:]
            step.slices.append(
                Slice(request, start, pending, True, new_pages=taken, draft_budget=draft, hidden_rows=hidden_rows)
            )
        return sum(1 + seq.draft_budget for seq in step.slices)

    def _most_draft(self, request: Request) -> int:
        """Nodes that a request's tree may have if the step has room."""
        room = request.max_len - len(request.token_ids) - 1
        most = max(0, min(request.draft_budget, self.config.max_draft, room))
        limit = _row_limit(request)
        return most if limit is None else min(most, limit - 1)

    def _schedule_prefill(self, step: Step, requests: Sequence[Request], budget: int, most_work: float) -> int:
        """Deal the budget out to these requests in equal shares; returns the rows that they take.

        most_work: of all together, but for a page of each and what must end on a grid.
        """
        left = budget
        for i, request in enumerate(requests):
            if left <= 0:
                break
            if request in step.preempted:  # for an older one
                continue
            behind = len(requests) - i - 1
            share = max(-(-left // (behind + 1)), self.blocks.page_size)
            if most_work < math.inf:
                within = int(most_work / (behind + 1) / _work(1, request.num_computed))
                share = min(share, max(within, self.blocks.page_size))
            count = self._chunk(request, min(share, left))
            if request.prefill_grid and count + behind > left:
                self._alone = self._alone or request
                continue
            taken = self._schedule_chunk(step, request, count)
            left -= taken
            most_work = max(0.0, most_work - _work(taken, request.num_computed))
        return budget - left

    def _schedule_chunk(self, step: Step, request: Request, count: int) -> int:
        """Reserve and add the next ``count`` tokens of a prompt that are computed; returns the rows taken."""
        start = request.num_computed
        end, fills = request.stretch(count)
        taken = self._reserve(step, request, end)
        if taken is None:
            return 0
        samples = end == len(request.token_ids) and request.reading is None
        chunk = request.token_ids[start:end]
        for fill in reversed(fills):
            del chunk[fill.start - start : fill.stop - start]
        targets = request.token_ids[start + 1 : start + count + 1] if request.wants_scores else []
        step.slices.append(
            Slice(
                request,
                start,
                chunk,
                samples,
                new_pages=taken,
                hidden_rows=_hidden_rows(request, count, samples),
                targets=targets,
                layers=(layers := request.reading.layers if request.reading is not None else ()),
                state_rows=count if layers else 0,
                fills=fills,
            )
        )
        return count

    def _chunk(self, request: Request, most: int) -> int:
        """Rows of the next chunk: it ends on a page's border, or on the request's own grid, whatever the load."""
        done, size, grid = request.num_computed, self.blocks.page_size, request.prefill_grid
        if request.fills:  # its pages are shared with nobody
            return min(most, request.num_rows_left)
        if grid:
            count = grid - done % grid
        else:
            end = (done + most) // size * size
            count = end - done if end > done else most
        return min(count, request.num_pending, _row_limit(request) or count)

    def _candidates(self) -> list[Request]:
        """The waiting requests that may run, as far as others let them, in the order in which they are admitted."""
        if not self.waiting:
            return []
        full = sum(r.reading is None for r in self.running) >= self.config.max_running
        waiting = [r for r in self.waiting if not r.parked and not (full and r.reading is None)]
        return self._in_turn(waiting)

    def _in_turn(self, waiting: Iterable[Request]) -> list[Request]:
        """By priority, owners in turns, each owner's own in their order."""
        places = Counter(r.params.owner for r in self.running if r.reading is None)
        turns: list[tuple[Priority, int, Request]] = []
        for request in waiting:
            turns.append((request.priority, places[request.params.owner], request))
            places[request.params.owner] += request.reading is None
        return [request for *_, request in sorted(turns, key=lambda turn: turn[:2])]

    def _make_room(self, step: Step, budget: int) -> None:
        """Take a place, or pages, from the owner who has the most for one who has less and waits; where each
        has one place, that of whoever has had it longest for an owner who has none."""
        answering = [r for r in self.running if r.reading is None]
        first = next(iter(self._in_turn(r for r in self.waiting if r.reading is None and not r.parked)), None)
        others = [r for r in answering if first is not None and r.params.owner != first.params.owner]
        if first is None or not others:
            return
        full = len(answering) >= self.config.max_running
        if full:
            held, wanted = Counter(r.params.owner for r in answering), 1
        elif self._was_refused(first):
            held, wanted = Counter[str](), self.blocks.pages_for(min(len(first.token_ids), budget))
            for request in answering:
                held[request.params.owner] += len(request.pages)
        else:
            return
        most = max(held[r.params.owner] for r in others)
        victim = [r for r in others if held[r.params.owner] == most][-1]
        if most > held[first.params.owner] + wanted and first.preemptions <= victim.preemptions:
            self._preempt(step, victim)
        elif full and not held[first.params.owner]:
            longest = max(others, key=lambda r: r.num_output - r.turn_began)
            if longest.num_output - longest.turn_began >= TURN:
                self._preempt(step, longest)
                self.waiting.rotate(-1)  # behind all who wait

    def _admit(self, step: Step, budget: int) -> None:
        """Move waiting requests to the running ones while pages for their first chunks are there."""
        if budget <= 0:
            return
        groups = self.blocks.num_groups
        promised = len(self.running) * groups  # a place for each, so that admission does not preempt at once
        answering = sum(r.reading is None for r in self.running)
        under_way = {page for request in self.running if (page := self._page_under_way(request))}
        for request in self._candidates():
            if request in step.preempted:  # for those behind it
                continue
            if request.reading is None and answering >= self.config.max_running:
                continue
            if self._waits_for_prefix(request, under_way):
                continue
            if self._was_refused(request):
                return
            available = self.blocks.num_available
            match = self.blocks.match(request.token_ids, request.digests, request.gone, _num_reusable(request))
            cached = len(match.pages) * self.blocks.page_size
            promised += groups * self.blocks.pages_for(min(len(request.token_ids) - cached, budget))
            if self.running and promised > self.blocks.num_available:
                self.blocks.release(match.pages)
                request.refused = self.blocks.version, available
                return
            self.blocks.count(match)
            self.waiting.remove(request)
            request.pages = match.pages
            request.num_computed = cached
            request.num_published = len(match.pages)
            request.turn_began = request.num_output
            if not request.preemptions:
                request.cached_tokens, request.miss_reason = cached, match.miss_reason
            insort(self.running, request, key=lambda r: (r.priority, r.arrived))
            answering += request.reading is None
            if page := self._page_under_way(request):
                under_way.add(page)

    def _was_refused(self, request: Request) -> bool:
        """Whether the pages were not enough for it, and neither they nor what it finds in the cache are more now."""
        if request.refused is None or not self.running:
            return False
        version, available = request.refused
        return version == self.blocks.version and self.blocks.num_available <= available

    def _page_under_way(self, request: Request) -> tuple[int, bytes] | None:
        """Number and digest of the page that a request is just filling, if others may read it from the cache then."""
        page = request.num_computed // self.blocks.page_size
        shared = self.blocks.prefix_cache and request.shares_prefix and request.num_pending > 1
        if not shared or (page + 1) * self.blocks.page_size >= request.num_certain:
            return None
        return page, request.digests.upto(request.token_ids, page + 1)[page]

    def _waits_for_prefix(self, request: Request, under_way: Iterable[tuple[int, bytes]]) -> bool:
        """Is another request just computing a prefix that this one could then read from the cache?"""
        limit = (_num_reusable(request) - 1) // self.blocks.page_size
        return any(
            page < limit and request.digests.upto(request.token_ids, page + 1)[page] == digest
            for page, digest in under_way
        )

    def _reserve(self, step: Step, request: Request, num_tokens: int, least: int | None = None) -> int | None:
        """Give the request pages for ``num_tokens`` tokens, preempting younger requests if need be.

        least: tokens that must have pages, where no others can be had; None for all.

        Returns how many pages it took, or None where the request itself was preempted or can have none.
        """
        wanted = self.blocks.pages_for(num_tokens) - len(request.pages)
        if wanted <= 0:
            return 0
        while True:
            try:
                request.pages += (pages := self.blocks.allocate(wanted))
                return len(pages)
            except OutOfPages as error:
                victim = self.running[-1]
                alone = self.running == [request]
                if (alone or victim.priority is Priority.ANSWER) and self._reclaim():
                    continue
                if alone and least is not None and least < num_tokens:  # without a draft, then
                    return self._reserve(step, request, least)
                if alone:  # nobody is left who could give pages back
                    step.failed.append((request, error))
                    return None
                self._preempt(step, victim)
                if victim is request:
                    return None

    def _preempt(self, step: Step, victim: Request) -> None:
        step.slices = [seq for seq in step.slices if seq.request is not victim]
        self.blocks.release(victim.pages)
        victim.pages = []
        victim.num_computed = victim.num_published = 0
        victim.preemptions += 1
        self.num_preemptions += 1
        self.running.remove(victim)
        self.waiting.appendleft(victim)
        step.preempted.append(victim)

    def _publish(self, request: Request) -> None:
        if not request.shares_prefix:
            return
        request.num_published = self.blocks.publish(
            request.token_ids, request.num_final, request.pages, request.num_published, request.digests
        )

    def _drop_gone(self, request: Request) -> None:
        """Give back what no later row reads; it stays in the prefix cache until it is evicted."""
        if request.lifetimes is None:
            return
        for group in request.lifetimes.freeing:
            gone = request.gone(group, request.num_final)
            last = next((i for i in reversed(gone) if request.pages[i][group] == GONE), gone.start - 1)
            first = next((i for i in gone if request.pages[i][group] == GONE), gone.start)
            self.blocks.drop(request.pages, group, [*range(gone.start, first), *range(last + 1, gone.stop)])


def _work(rows: int, context: int) -> float:
    """Of so many rows behind so many tokens, in pairs of tokens."""
    return float(rows * (context + ROW))


def _row_limit(request: Request) -> int | None:
    """Most rows that the request's attention policy plans in one forward from where it stands."""
    return request.policy.max_rows(request.num_computed) if request.policy is not None else None


def _hidden_rows(request: Request, count: int, samples: bool) -> int:
    """Of how many of its ``count`` rows somebody wants the hidden states."""
    if request.wants_scores:
        return count
    if request.reading is not None:
        return count if request.reading.on_chunk is not None and not request.reading.layers else 0
    return int(samples and request.mixture is not None)


def _shared_out(total: int, wanted: Sequence[int]) -> list[int]:
    """``wanted``, the largest cut first until the sum is at most ``total``."""
    if sum(wanted) <= total:
        return list(wanted)
    shares = [0] * len(wanted)
    for done, i in enumerate(sorted(range(len(wanted)), key=wanted.__getitem__)):
        shares[i] = min(wanted[i], total // (len(wanted) - done))
        total -= shares[i]
    return shares


def _num_reusable(request: Request) -> int:
    """How many tokens may come from the cache, and one more.

    Rows that log-probabilities are still wanted of are computed, and those whose states a drafter reads. A policy's
    page selections are made while decoding and are not cached: a preempted request decodes its output again.
    """
    if not request.shares_prefix:
        return 1
    if request.wants_scores:
        return len(request.scored) + 1
    if request.policy is None:
        return max(1, request.num_certain - max(request.state_window - 1, 0))
    length = request.prompt_len
    if request.prefill_grid:
        length = length // request.prefill_grid * request.prefill_grid
    return max(1, min(length + 1, request.num_certain - max(request.state_window - 1, 0)))
