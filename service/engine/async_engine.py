"""The door to an engine: every prompt of every front end, command and benchmark passes here.

It refuses what can never run, bounds the queue, keeps the limits of time, drains and aborts. `stream` and `generate`
are the only ways to tokens. Whoever leaves them (a client that went away, a time-out, Ctrl-C) aborts what it asked for.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog

from drafters.warm_up import warm_up
from retrieval.common.openmp import release_team
from service.engine.admission import Admission
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.kv.passage_store import PassageKV
from service.engine.loading.sampling_defaults import SamplingDefaults
from service.engine.mixture import MixtureSource, mixed
from service.engine.outputs import Generation, TokenOutput
from service.engine.params import DraftSources, SamplingParams
from service.engine.request import Reading, Request
from service.engine.spans import PassageSpans
from service.engine.ticket import Observer, Ticket
from service.errors import Busy, DeviceLost, GenerationFailed, InvalidRequest, ModelError, Unavailable
from service.owner import present_owner

log = structlog.get_logger(__name__)

T = TypeVar("T")
PASSAGES_A_FILE = 8
"""Their hash is checked between two steps, when the first of them is wanted."""
SHUT = "The engine takes no requests: it is loading, draining or stopped."


class AsyncEngine:
    """Owns an ``Engine`` and the one thread that touches it; use it from any thread and any event loop.

    Commands reach the thread through a queue and run between steps. When the thread dies of an error outside a step,
    the requests in flight fail with that error and a new thread takes over an engine emptied of requests; when the
    device is lost, nothing is taken any longer.
    """

    def __init__(self, engine: Engine, limits: EngineConfig | None = None) -> None:
        """limits: whose `max_running`, `queue_limit` and time limits are kept; the engine's own by default."""
        self.engine = engine
        self.limits = limits or engine.config
        self.observers: list[Observer] = []
        """Told of every output of a stream."""
        self.on_lost: Callable[[DeviceLost], None] | None = None
        """Called in the engine's thread when the device can serve nobody any longer, and those in flight know."""
        self.in_flight = 0
        """Answers under way, whose requests run or wait."""
        self._of_owner: Counter[str] = Counter()
        """The same of each owner who has any."""
        self.restarts = 0
        self._answer_s: float | None = None  # mean time of the last answers
        self._admission = Admission(engine)
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._takers: dict[str, _Taker] = {}
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._draining = False
        self._lost = False
        self._counting = threading.Lock()
        self._ids = itertools.count(1)

    @classmethod
    def from_pretrained(cls, model: str, config: EngineConfig | None = None, **options: Any) -> AsyncEngine:
        """The door to a model (folder, hub id or ``embedded``), still shut: enter it, or `start` it.

        Errors as of ``Engine.from_pretrained``.
        """
        door = cls(Engine.from_pretrained(model, config, **options))
        release_team()  # loading computes in this thread, steps in another
        return door

    def __enter__(self) -> AsyncEngine:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the engine's thread; takes a second, for what drafting compiles."""
        warm_up()
        release_team()
        self._stopping = self._draining = False
        self._start_thread()

    def stop(self) -> None:
        """Abort what is in flight and end the thread."""
        self._draining = self._stopping = True
        self._commands.put(self._abort_all)
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        self._run_commands(wait=False)  # those that came too late are refused

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing more and wait for what is in flight; says whether all of it ended in time."""
        self._draining = True
        deadline = time.monotonic() + timeout_s
        while self.in_flight and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        return self.in_flight == 0

    @property
    def ready(self) -> bool:
        """Whether new requests are taken."""
        running = self._thread is not None and self._thread.is_alive()
        return running and not self._draining and not self._lost

    @property
    def window(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._admission.window

    @property
    def tokenizer(self) -> Any:
        """The model's, None where it has none; for decoding only: the engine's thread has it too."""
        return self.engine.tokenizer

    @property
    def sampling_defaults(self) -> SamplingDefaults:
        """How the model's makers sample, for requests that do not say."""
        return self.engine.loaded.sampling

    def check(self, params: SamplingParams) -> None:
        """Refuse options that the engine does not have. Raises InvalidRequest. A constraint that is new takes time."""
        self._admission.check(params)

    async def checked(self, params: SamplingParams) -> None:
        """`check`, which no event loop waits for."""
        if params.constraint is None:
            self.check(params)
        else:
            await asyncio.to_thread(self.check, params)

    def check_prompt(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        param: str = "prompt",
        spans: PassageSpans | None = None,
    ) -> None:
        """Refuse a prompt that can never run; see `Admission.check_prompt`."""
        self._admission.check_prompt(prompt_ids, params, param, spans)

    def admit(self, requests: int = 1) -> None:
        """Refuse when stopped, draining or lost, or when the queue has no room for that many more answers.

        A queue that others have filled has room for the owner's share of it. Raises Busy or Unavailable. Front ends
        call it before they start to answer.
        """
        if not self.ready:
            raise Unavailable(SHUT)
        waiting = self.in_flight + requests - self.limits.max_running
        mine = present_owner()
        share = (self.limits.max_running + self.limits.queue_limit) // len({mine, *self._of_owner})
        if waiting > self.limits.queue_limit and self._of_owner[mine] + requests > share:
            raise Busy(
                f"The queue is full: {self.in_flight} requests are in flight.",
                retry_after=self._until_room(waiting - self.limits.queue_limit),
                hint="Try again later.",
            )

    @contextmanager
    def ticket(self) -> Iterator[Ticket]:
        """One place in the queue and one clock, for an answer of many requests one after another.

        Raises as `admit` does.
        """
        owner = present_owner()
        with self._counting:
            self.admit()
            self._count(owner, 1)
        began = time.monotonic()
        try:
            yield Ticket(self.limits, self.observers)
        finally:
            spent = time.monotonic() - began
            with self._counting:
                self._count(owner, -1)
                self._answer_s = spent if self._answer_s is None else 0.8 * self._answer_s + 0.2 * spent

    def _count(self, owner: str, answers: int) -> None:
        """So many more answers of an owner are under way. Within `_counting`."""
        self.in_flight += answers
        self._of_owner[owner] += answers
        if not self._of_owner[owner]:
            del self._of_owner[owner]

    def _until_room(self, answers: int) -> float:
        """Seconds until so many answers will have ended, by the time that the last ones took from coming to end."""
        if self._answer_s is None or not self.in_flight:
            return 1.0
        return min(max(1.0, answers * self._answer_s / self.in_flight), self.limits.total_timeout_s)

    async def stream(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams | None = None,
        draft_sources: DraftSources | None = None,
        mixture: MixtureSource | None = None,
        ticket: Ticket | None = None,
        spans: PassageSpans | None = None,
    ) -> AsyncGenerator[TokenOutput, None]:
        """Outputs of one request as they come, the last one finished.

        Args:
            draft_sources: what its drafter may draw on.
            mixture: what its tokens are chosen from besides the model.
            ticket: of an answer that this request is a part of; its holder tells it what to observe.
            spans: where the prompt holds passages.

        Raises:
            PromptTooLong, InvalidRequest: it can never run.
            Busy: the queue is full. Unavailable: the engine is not running, or draining.
            TimedOut: no first token, or no end, in time.
            GenerationFailed: the engine gave up on it. DeviceLost: on all.
        """
        params = mixed(params or SamplingParams()) if mixture is not None else params or SamplingParams()
        await self.checked(params)
        self.check_prompt(prompt_ids, params, spans=spans)
        mine: AbstractContextManager[Ticket] = nullcontext(ticket) if ticket is not None else self.ticket()
        with mine as clock:
            taker = _Stream()
            request_id = self._submit(taker, prompt_ids, params, draft_sources, mixture, spans=spans)
            finished = False
            try:
                while not finished:
                    output = await clock.wait(taker.outputs.get())
                    finished = isinstance(output, Exception) or output.finished
                    if isinstance(output, Exception):
                        raise output
                    if output.refusal is not None:
                        raise output.refusal
                    if output.error is not None:
                        raise _failure(output.error)
                    if ticket is None:
                        clock.observe(output)
                    yield output
            finally:
                if not finished:
                    self._commands.put(partial(self._abort, request_id))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        draft_sources: Sequence[DraftSources | None] | None = None,
        mixture: MixtureSource | None = None,
        reading: Reading | None = None,
        spans: Sequence[PassageSpans | None] | None = None,
    ) -> list[Generation]:
        """Run prompts to their ends, batched; results in their order. Blocks the calling thread alone.

        The whole batch is taken, whatever the queue holds, and no time limit cuts it: Ctrl-C does. A prompt that the
        engine fails has the finish reason ``error`` and says why; the others go on.

        Args:
            params: of each prompt, or one for all.
            draft_sources: of each prompt.
            mixture: what the tokens of all are chosen from besides the model.
            reading: who wants the prompts read, which are then not answered.
            spans: where each of them holds passages.

        Raises:
            PromptTooLong, InvalidRequest: before anything ran.
            Unavailable: the engine is not running, or draining. GenerationFailed, DeviceLost: it ended in the midst.
        """
        shared = params or SamplingParams()
        each = [shared] * len(prompts) if isinstance(shared, SamplingParams) else list(shared)
        if mixture is not None:
            each = [mixed(one) for one in each]
        sources = draft_sources or [None] * len(prompts)
        held = spans or [None] * len(prompts)
        for prompt, one, own in zip(prompts, each, held, strict=True):
            self.check(one)
            self.check_prompt(prompt, one, spans=own)
        release_team()  # this thread may have computed, and waits now
        owner = present_owner()
        ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        takers = [_Collector(ended) for _ in prompts]
        ids: list[str] = []
        with self._counting:
            if not self.ready:
                raise Unavailable(SHUT)
            self._count(owner, len(takers))
        try:
            for taker, prompt, one, source, own in zip(takers, prompts, each, sources, held, strict=True):
                ids.append(self._submit(taker, prompt, one, source, mixture, reading, own))
            for _ in ids:
                error = ended.get()
                if error is not None:
                    raise error
        finally:
            with self._counting:
                self._count(owner, -len(takers))
            for request_id, taker in zip(ids, takers, strict=False):
                if not taker.finished:
                    self._commands.put(partial(self._abort, request_id))
        return [taker.generation() for taker in takers]

    def warm(self, name: str, token_ids: Sequence[int], attention: str | None = None) -> Path:
        """Compute the KV of a prefix and keep its whole pages on disk, so that prompts that begin so start at once.

        Args:
            name: of the file; a document's id.
            token_ids: the prefix; its last, partial page is not kept.
            attention: the policy that will be asked for; pages of one policy are of no use to another.

        Raises:
            ModelError: no folder was configured. GenerationFailed: it could not be read or written.
            InvalidRequest, PromptTooLong: the prefix is shorter than a page, or does not fit.
        """
        config = self.engine.config
        if config.warm_folder is None or not config.prefix_cache:
            raise ModelError("There is no folder for warmed documents.", hint="Set warm_folder, and prefix_cache.")
        if len(token_ids) < config.page_size:
            raise InvalidRequest(f"{len(token_ids)} tokens do not fill a page of {config.page_size}: nothing to warm.")
        written: list[Path] = []
        keep = Reading(on_read=lambda request: written.append(self.engine.keep_warm(name, request)))
        self.read(token_ids, keep, attention)
        return written[0]

    def warm_passages(
        self,
        name: str,
        prompts: Sequence[tuple[Sequence[int], PassageSpans]],
        goes_on: Callable[[], bool] = lambda: True,
    ) -> list[Path]:
        """Read the passages of prompts, each alone, and keep their KV on disk, for prompts that are blended of them.

        Args:
            name: of the files; a document's id.
            goes_on: asked before each passage; at the first False no more is read, and the file begun is not written.

        Raises:
            ModelError: no folder was configured. GenerationFailed: one could not be read.
            InvalidRequest, PromptTooLong: the model's keys cannot be moved, or a passage does not fit.
            OSError: they could not be written.
        """
        on_disk = self.engine.blending.store.on_disk
        if on_disk is None:
            raise ModelError("There is no folder for warmed documents.", hint="Set warm_folder.")
        self.run(lambda engine: engine.blending.check_movable()).result()
        wanted = [(ids[: held.preface], ids[span.start : span.stop]) for ids, held in prompts for span in held.passages]
        written: list[Path] = []
        for first in range(0, len(wanted), PASSAGES_A_FILE):
            found: dict[bytes, PassageKV] = {}
            for preface, ids in wanted[first : first + PASSAGES_A_FILE]:
                if not goes_on():
                    return written
                take = partial(self._take_passage, found, len(preface))
                self.read([*preface, *ids], Reading(on_read=take, private=True), "dense")
            written.append(on_disk.write(f"{name}.{first // PASSAGES_A_FILE:04d}", found))
        return written

    def _take_passage(self, found: dict[bytes, PassageKV], preface: int, read: Request) -> None:
        key, kept = self.engine.blending.read_alone(read, preface)
        found[key] = kept

    def read(self, token_ids: Sequence[int], reading: Reading, attention: str | None = None) -> None:
        """Have a sequence read, in the background of other requests. Blocks the calling thread alone.

        Raises:
            InvalidRequest, PromptTooLong: before anything ran. GenerationFailed: the forward or ``reading`` failed.
        """
        params = SamplingParams(max_tokens=1, attention=attention, drafter="none")
        (read,) = self.generate([token_ids], params, reading=reading)
        if read.error is not None:
            raise GenerationFailed(f"Reading failed: {read.error}.")

    def forget(self, owner: str) -> None:
        """Forget what an owner's requests have taught the drafters; those under way keep it to their end."""
        self._commands.put(lambda: self.engine.drafting.learned.forget(owner))

    def run(self, action: Callable[[Engine], T]) -> Future[T]:
        """The result of ``action(engine)``, which runs in the engine's thread between steps."""
        future: Future[T] = Future()

        def command() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(action(self.engine))
            except Exception as error:
                future.set_exception(error)

        if self._thread is None:
            raise Unavailable(SHUT)
        self._commands.put(command)
        return future

    def _submit(
        self,
        taker: _Taker,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        draft_sources: DraftSources | None,
        mixture: MixtureSource | None,
        reading: Reading | None = None,
        spans: PassageSpans | None = None,
    ) -> str:
        """Hand a checked request to the engine's thread; its outputs, or why it is refused, go to the taker."""
        request_id = f"r{next(self._ids)}"

        def add() -> None:
            if self._lost or self._stopping:
                return taker.put(Unavailable(SHUT))
            self._takers[request_id] = taker
            try:
                self.engine.add_request(prompt_ids, params, request_id, draft_sources, mixture, reading, spans)
            except Exception as error:
                del self._takers[request_id]
                taker.put(error)
            return None

        self._commands.put(add)
        return request_id

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._main, name="folio-engine", daemon=True)
        self._thread.start()

    def _main(self) -> None:
        try:
            self._loop()
        except DeviceLost as error:
            self._lost = True  # first, so that nobody is told of it while the service still says that it is ready
            log.critical("the device is lost", in_flight=len(self._takers), error=error.message)
            for taker in self._takers.values():
                taker.put(error)
            self._takers.clear()
            if self.on_lost is not None:
                self.on_lost(error)
            self._refuse_until_stopped()
        except BaseException as error:  # outside a step nothing should raise: fail what is in flight, start again
            log.exception("engine thread died", in_flight=len(self._takers))
            failed, self._takers = self._takers, {}
            self.engine.reset()
            if not self._stopping:  # before the news is out, so that whoever hears it can ask again
                self.restarts += 1
                self._start_thread()
            for taker in failed.values():
                taker.put(_failure(f"{type(error).__name__}: {error}"))

    def _loop(self) -> None:
        while True:
            if not self.engine.has_work:
                release_team()  # whoever computes meanwhile has the cores
            self._run_commands(wait=not self.engine.has_work)
            for output in self.engine.step():
                self._deliver(output)
            if self._stopping and not self.engine.has_work:
                return

    def _refuse_until_stopped(self) -> None:
        while not self._stopping:
            self._run_commands(wait=True)

    def _run_commands(self, wait: bool) -> None:
        try:
            if wait and not self._stopping:
                self._commands.get(timeout=0.5)()
            while True:
                self._commands.get_nowait()()
        except queue.Empty:
            return

    def _deliver(self, output: TokenOutput) -> None:
        taker = self._takers.get(output.request_id)
        if output.finished:
            self._takers.pop(output.request_id, None)
        if taker is not None:
            taker.put(output)

    def _abort(self, request_id: str) -> None:
        self._takers.pop(request_id, None)
        self.engine.abort(request_id)

    def _abort_all(self) -> None:
        for request_id in list(self._takers):
            self.engine.abort(request_id)
        self.engine.canary.stop()


class _Taker(Protocol):
    """Where a request's outputs go, from the engine's thread; an exception is the last."""

    def put(self, item: TokenOutput | Exception) -> None: ...


class _Stream:
    """A queue of the event loop that asked."""

    def __init__(self) -> None:
        self.outputs: asyncio.Queue[TokenOutput | Exception] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def put(self, item: TokenOutput | Exception) -> None:
        try:
            self._loop.call_soon_threadsafe(self.outputs.put_nowait, item)
        except RuntimeError:  # the loop is closed: nobody listens any longer
            log.debug("output dropped, event loop closed")


class _Collector:
    """Gathers a request's outputs in the engine's thread; whoever waits wakes once, at the end."""

    def __init__(self, ended: queue.SimpleQueue[Exception | None]) -> None:
        self.finished = False
        self._ended = ended
        self._outputs: list[TokenOutput] = []
        self._times: list[float] = []
        self._began = time.perf_counter()

    def put(self, item: TokenOutput | Exception) -> None:
        if isinstance(item, Exception):
            self.finished = True
            self._ended.put(item)
            return
        self._outputs.append(item)
        self._times += [time.perf_counter() - self._began] * len(item.token_ids)
        if item.finished:
            self.finished = True
            self._ended.put(None)

    def generation(self) -> Generation:
        """The outputs as one."""
        parts, last = self._outputs, self._outputs[-1]
        return Generation(
            token_ids=[token for part in parts for token in part.token_ids],
            text="".join(part.text for part in parts),
            finish_reason=last.finish_reason or "",
            stats=last.stats,
            logprobs=[entry for part in parts for entry in part.logprobs or ()] or None,
            sources=[source for part in parts for source in part.sources],
            times=self._times,
            prompt_logprobs=next((part.prompt_logprobs for part in parts if part.prompt_logprobs is not None), None),
            error=last.error,
        )


def _failure(why: str) -> GenerationFailed:
    """What those are told who asked from elsewhere: an exception's text may hold somebody's path or document."""
    log.error("generation failed", error=why)
    return GenerationFailed("The engine failed in the midst of this request.", hint="The log says why; try again.")
