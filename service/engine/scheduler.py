"""Continuous batching: which tokens of which requests run in the next step.

Decoding requests run first, one pending token and a draft each. What is left of the step's token budget goes to
prompts in chunks: equal shares over all requests that are prefilling, so that a long prompt cannot starve a short one,
in order of arrival; what even they leave goes to what is read in the background. When pages run out the youngest
request of the least priority is preempted: its pages go back, its tokens stay, and it is computed anew later (mostly
from the prefix cache). The oldest request can always take what it needs, and no request is admitted that the whole pool
could not hold, so there is no deadlock. A parked request keeps its pages, but is preempted as any other.

Lengths move and pages are freed in ``commit``, ``rollback`` and ``finish`` alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from drafters.verify import Verdict
from service.engine.block_manager import GONE, BlockManager, OutOfPages, Place
from service.engine.reading import Priority
from service.engine.request import FinishReason, Request
from service.engine.step import Slice, Step
from sparse_attn.kv.lifetimes import PageLifetimes


@dataclass(frozen=True)
class SchedulerConfig:
    """Limits of one step.

    Attributes:
        max_step_tokens: rows of one forward.
        max_running: requests that may hold pages at once, those that are only read aside.
        max_draft: nodes of a draft tree.
    """

    max_step_tokens: int = 2048
    max_running: int = 64
    max_draft: int = 64


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

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queue a request that the model and the whole pool can hold (`service.engine.admission`)."""
        self.waiting.append(request)

    def most_pages(self, max_len: int, lifetimes: PageLifetimes | None) -> int:
        """No less than the pages that a request holds at any time; a tree is kept within max_len."""
        groups = range(self.blocks.num_groups)
        if lifetimes is None:
            return len(groups) * self.blocks.pages_for(max_len)
        step = max(self.config.max_step_tokens, self.config.max_draft + 1, self.blocks.page_size)
        return sum(lifetimes.most_pages(group, max_len, step) for group in groups)

    def schedule(self) -> Step:
        """Choose the slices of the next forward and reserve their pages, the worst case of a tree included."""
        step = Step()
        budget = self.config.max_step_tokens
        for request in list(self.running):
            if request.decodes and request in self.running:
                budget -= self._schedule_decode(step, request)
        self._admit(max(budget, 0))
        scheduled = {part.request for part in step.slices}
        reading = [r for r in self.running if r.num_pending and not r.parked and r not in scheduled]
        for background in (False, True):
            some = [r for r in reading if (r.priority is Priority.BACKGROUND) == background]
            budget -= self._schedule_prefill(step, some, budget)
        return step

    def commit(self, step: Step, verdicts: dict[str, Verdict], is_stop: Callable[[Request, int], bool]) -> None:
        """Move lengths on, append the emitted tokens, return the pages that a rejected draft had reserved.

        Args:
            verdicts: by request id, for every slice that samples.
            is_stop: does this token end the sequence of the request?
        """
        for part in step.slices:
            request = part.request
            if request.finish_reason is not None:  # aborted during the forward; its pages went back then
                continue
            if not part.samples:
                request.num_computed = part.start + len(part.token_ids)
                self._publish(request)
                self._drop_gone(request)
                continue
            verdict = verdicts[request.id]
            if request.mixture is not None:
                self._commit_guess(part, verdict.tokens)
                continue
            kept = self._cut(request, verdict.tokens, is_stop)
            request.token_ids.extend(kept)
            # all but the last emitted token lie in pages: the accepted nodes were copied behind the pending token
            request.num_computed = part.start + len(part.token_ids) + len(kept) - 1
            self._publish(request)
            self._release_spare(request)
            self._drop_gone(request)

    def settle(self, request: Request, tokens: Sequence[int], is_stop: Callable[[Request, int], bool]) -> None:
        """Put the true tokens of a round in the place of the guesses, and let the request run again.

        The true tokens are the guesses up to the first that was wrong, so that what lies in pages is what they say. No
        page is cut that others may read: none was published beyond the tokens that were certain.
        """
        kept = self._cut(request, tokens, is_stop)
        request.token_ids[request.num_certain :] = kept
        request.num_provisional = 0
        request.num_computed = min(request.num_computed, len(request.token_ids) - 1)
        request.parked = False
        self._publish(request)
        self._release_spare(request)
        self._drop_gone(request)

    def rollback(self, step: Step) -> None:
        """Undo ``schedule``: the pages it took go back, no length has moved."""
        for part in step.slices:
            request = part.request
            if part.new_pages and request.finish_reason is None:
                taken = request.pages[-part.new_pages :]
                del request.pages[-part.new_pages :]
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

    def _commit_guess(self, part: Slice, guess: Sequence[int]) -> None:
        """A row of a round: its token lies in pages; the guess is provisional, and without one the request parks."""
        request = part.request
        request.num_computed = part.start + len(part.token_ids)
        request.token_ids.extend(guess)
        request.num_provisional += len(guess)
        request.parked = not guess
        self._publish(request)
        self._drop_gone(request)

    def _release_spare(self, request: Request) -> None:
        """Give back the pages behind the computed tokens."""
        spare = request.pages[self.blocks.pages_for(request.num_computed) :]
        del request.pages[len(request.pages) - len(spare) :]
        self.blocks.release(spare)

    def _schedule_decode(self, step: Step, request: Request) -> int:
        """Reserve and add the pending token of a decoding request; returns the rows that it may take."""
        room = request.max_len - len(request.token_ids) - 1
        draft = max(0, min(request.draft_budget, self.config.max_draft, room))
        limit = _row_limit(request)
        if limit is not None:
            draft = min(draft, limit - 1)
        taken = self._reserve(step, request, request.num_computed + 1 + draft)
        if taken is None:
            return 0
        step.slices.append(
            Slice(
                request,
                request.num_computed,
                [request.token_ids[-1]],
                True,
                new_pages=taken,
                draft_budget=draft,
                hidden_rows=_hidden_rows(request, 1, True),
            )
        )
        return 1 + draft

    def _schedule_prefill(self, step: Step, requests: Sequence[Request], budget: int) -> int:
        """Deal the budget out to these requests in equal shares; returns the rows that they take."""
        left = budget
        for i, request in enumerate(requests):
            if left <= 0:
                break
            if request not in self.running:  # preempted for an older one
                continue
            share = -(-left // (len(requests) - i))
            count = min(request.num_pending, self._chunk(request, max(share, self.blocks.page_size)))
            count = min(count, _row_limit(request) or count)
            start = request.num_computed
            taken = self._reserve(step, request, start + count)
            if taken is None:
                continue
            samples = count == request.num_pending and request.reading is None
            chunk = request.token_ids[start : start + count]
            hidden_rows = _hidden_rows(request, count, samples)
            step.slices.append(Slice(request, start, chunk, samples, new_pages=taken, hidden_rows=hidden_rows))
            left -= count
        return budget - left

    def _chunk(self, request: Request, count: int) -> int:
        """Round a chunk so that it ends on a page's border, or on the request's own grid, whatever the load."""
        if request.prefill_grid:
            return request.prefill_grid - request.num_computed % request.prefill_grid
        end = (request.num_computed + count) // self.blocks.page_size * self.blocks.page_size
        return max(end - request.num_computed, 1) if end > request.num_computed else count

    def _admit(self, budget: int) -> None:
        """Move waiting requests to the running ones while pages for their first chunks are there."""
        if budget <= 0:
            return
        groups = self.blocks.num_groups
        promised = len(self.running) * groups  # a place for each, so that admission does not preempt at once
        answering = sum(r.reading is None for r in self.running)
        for request in sorted(self.waiting, key=lambda r: r.priority):
            if request.reading is None and answering >= self.config.max_running:
                continue
            if request.parked or self._prefix_under_way(request):
                continue
            match = self.blocks.match(_reusable(request), request.salt, request.gone)
            cached = len(match.pages) * self.blocks.page_size
            promised += groups * self.blocks.pages_for(min(len(request.token_ids) - cached, budget))
            if self.running and promised > self.blocks.num_available:
                self.blocks.release(match.pages)
                return
            self.waiting.remove(request)
            request.pages = match.pages
            request.num_computed = cached
            request.num_published = len(match.pages)
            if not request.preemptions:
                request.cached_tokens, request.miss_reason = cached, match.miss_reason
            self.running.append(request)
            self.running.sort(key=lambda r: (r.priority, r.arrived))
            answering += request.reading is None

    def _prefix_under_way(self, request: Request) -> bool:
        """Is another request just computing a prefix that this one could then read from the cache?"""
        if not self.blocks.prefix_cache or not request.shares_prefix:
            return False
        size = self.blocks.page_size
        for other in self.running:
            if other.num_pending <= 1 or other.salt != request.salt or not other.shares_prefix:
                continue
            limit = min(len(other.token_ids), len(request.token_ids)) - 1
            end = min(limit, other.num_computed + size)  # the page that the other one computes next
            if end >= other.num_computed + size and request.token_ids[:end] == other.token_ids[:end]:
                return True
        return False

    def _reserve(self, step: Step, request: Request, num_tokens: int) -> int | None:
        """Give the request pages for ``num_tokens`` tokens, preempting younger requests if need be.

        Returns how many pages it took, or None where the request itself was preempted.
        """
        wanted = self.blocks.pages_for(num_tokens) - len(request.pages)
        if wanted <= 0:
            return 0
        while True:
            try:
                request.pages += (pages := self.blocks.allocate(wanted))
                return len(pages)
            except OutOfPages:
                victim = self.running[-1]
                answers = request.priority is Priority.ANSWER and victim.priority is not Priority.BACKGROUND
                if answers and self._reclaim():
                    continue
                self._preempt(step, victim)
                if victim is request:
                    return None

    def _preempt(self, step: Step, victim: Request) -> None:
        step.slices = [part for part in step.slices if part.request is not victim]
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
        computed = request.token_ids[: request.num_final]
        request.num_published = self.blocks.publish(computed, request.pages, request.num_published, request.salt)

    def _drop_gone(self, request: Request) -> None:
        """Give back what no later row reads; it stays in the prefix cache until it is evicted."""
        if request.lifetimes is None:
            return
        for group in request.lifetimes.freeing:
            gone = request.gone(group, request.num_final)
            last = next((i for i in reversed(gone) if request.pages[i][group] == GONE), gone.start - 1)
            first = next((i for i in gone if request.pages[i][group] == GONE), gone.start)
            self.blocks.drop(request.pages, group, [*range(gone.start, first), *range(last + 1, gone.stop)])

    @staticmethod
    def _cut(request: Request, tokens: Sequence[int], is_stop: Callable[[Request, int], bool]) -> list[int]:
        """The emitted tokens up to the first that ends the sequence, or up to max_tokens."""
        kept: list[int] = []
        for token in tokens:
            kept.append(token)
            if is_stop(request, token):
                request.finish_reason = FinishReason.STOP
                break
            if request.num_output + len(kept) == request.params.max_tokens:
                request.finish_reason = FinishReason.LENGTH
                break
        return kept


def _row_limit(request: Request) -> int | None:
    """Most rows that the request's attention policy plans in one forward from where it stands."""
    return request.policy.max_rows(request.num_computed) if request.policy is not None else None


def _hidden_rows(request: Request, count: int, samples: bool) -> int:
    """Of how many of its ``count`` rows somebody wants the hidden states."""
    if request.reading is not None:
        return count if request.reading.on_chunk is not None else 0
    return int(samples and request.mixture is not None)


def _reusable(request: Request) -> list[int]:
    """The tokens whose pages may come from the cache, and one more.

    A policy's page selections are made while decoding and are not cached: a preempted request decodes its output again.
    """
    if not request.shares_prefix:
        return request.token_ids[:1]
    if request.policy is None:
        return request.token_ids[: request.num_certain]
    length = request.prompt_len
    if request.prefill_grid:
        length = length // request.prefill_grid * request.prefill_grid
    return request.token_ids[: length + 1]
