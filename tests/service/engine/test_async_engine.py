"""The door: streams and batches, the queue's room, time limits, aborts, drain, and what an engine's death does."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from service.engine.async_engine import AsyncEngine
from service.engine.config import EngineConfig
from service.engine.outputs import TokenOutput
from service.engine.params import SamplingParams
from service.errors import Busy, DeviceLost, GenerationFailed, InvalidRequest, PromptTooLong, TimedOut, Unavailable
from service.owner import in_the_name_of

from .conftest import generate, make_engine

PROMPT = list(range(3, 60))
SHORT = SamplingParams(max_tokens=5, ignore_eos=True)
LONG = SamplingParams(max_tokens=400, ignore_eos=True)


def with_engine(test: Callable[[AsyncEngine], Awaitable[None]], **limits: Any) -> None:
    with AsyncEngine(make_engine(), EngineConfig(**limits)) as door:
        asyncio.run(asyncio.wait_for(test(door), 60))
    door.engine.check_integrity()
    assert door.engine.blocks.num_owned == 0
    assert door.in_flight == 0


async def collect(door: AsyncEngine, params: SamplingParams) -> list[int]:
    return [t async for output in door.stream(PROMPT, params) for t in output.token_ids]


def slowly(door: AsyncEngine, seconds: float) -> None:
    """Make every step of the engine take longer."""
    step = door.engine.step

    def slow() -> list[TokenOutput]:
        if door.engine.has_work:
            time.sleep(seconds)
        return step()

    door.engine.step = slow  # type: ignore[method-assign]


def test_concurrent_streams_are_those_of_each_alone() -> None:
    each = [SamplingParams(max_tokens=10, temperature=0.8, seed=i, ignore_eos=True) for i in range(5)]
    expected = [generate(make_engine(), [PROMPT], p)[0].token_ids for p in each]

    async def test(door: AsyncEngine) -> None:
        assert await asyncio.gather(*(collect(door, p) for p in each)) == expected

    with_engine(test)


def test_a_batch_from_a_thread_runs_beside_streams() -> None:
    expected = generate(make_engine(), [PROMPT], LONG)[0].token_ids

    async def test(door: AsyncEngine) -> None:
        batch = asyncio.to_thread(door.generate, [PROMPT, PROMPT[:20]], [SHORT, LONG])
        streamed, (first, second) = await asyncio.gather(collect(door, LONG), batch)
        assert streamed == expected
        assert first.token_ids == expected[:5]
        assert len(second.token_ids) == len(second.times) == 400
        assert second.times == sorted(second.times)

    with_engine(test)


def test_a_batch_larger_than_the_queue_is_taken_and_kept_in_order() -> None:
    prompts = [PROMPT[i:] for i in range(12)]
    with AsyncEngine(make_engine(), EngineConfig(max_running=1, queue_limit=1)) as door:
        found = door.generate(prompts, SHORT)
    assert [one.stats["prompt_tokens"] for one in found] == [len(prompt) for prompt in prompts]


@pytest.fixture
def _python_interrupts() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, whatever a service in this process has set."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_python_interrupts")
def test_an_interrupted_batch_is_aborted() -> None:
    with AsyncEngine(make_engine()) as door:
        slowly(door, 0.05)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            door.generate([PROMPT, PROMPT[:20]], LONG)
        assert door.run(lambda engine: engine.blocks.num_owned).result() == 0
        assert door.in_flight == 0


def test_leaving_a_stream_gives_its_pages_back() -> None:
    async def test(door: AsyncEngine) -> None:
        stream = door.stream(PROMPT, LONG)
        await anext(stream)
        assert await asyncio.wrap_future(door.run(lambda e: e.blocks.num_owned)) > 0
        await stream.aclose()
        assert await asyncio.wrap_future(door.run(lambda e: e.blocks.num_owned)) == 0
        assert door.in_flight == 0

    with_engine(test)


def test_both_ways_refuse_alike_before_anything_is_queued() -> None:
    async def test(door: AsyncEngine) -> None:
        for prompt, params, kind in (
            ([], SHORT, InvalidRequest),
            ([3] * 200, LONG, PromptTooLong),
            (PROMPT, SamplingParams(drafter="nonsense"), InvalidRequest),
            (PROMPT, SamplingParams(drafter="draft_model"), InvalidRequest),
        ):
            with pytest.raises(kind) as streamed:
                await anext(door.stream(prompt, params))
            with pytest.raises(kind) as batched:
                await asyncio.to_thread(door.generate, [PROMPT, prompt], [SHORT, params])
            assert streamed.value.detail == batched.value.detail
        assert door.engine.totals.finished == door.engine.totals.failed

    with_engine(test)


def test_a_full_queue_refuses_and_makes_room_again() -> None:
    async def test(door: AsyncEngine) -> None:
        streams = [door.stream(PROMPT, LONG) for _ in range(3)]
        for stream in streams:
            await anext(stream)
        with pytest.raises(Busy, match="3 requests are in flight") as refused:
            await anext(door.stream(PROMPT, SHORT))
        assert refused.value.retry_after > 0
        await streams.pop().aclose()
        assert len(await collect(door, SHORT)) == 5
        for stream in streams:
            await stream.aclose()

    with_engine(test, max_running=1, queue_limit=2)


def test_a_queue_that_another_has_filled_has_room_for_ones_share() -> None:
    async def test(door: AsyncEngine) -> None:
        with ExitStack() as bobs:
            with in_the_name_of("bob"):
                for _ in range(8):
                    bobs.enter_context(door.ticket())
                with pytest.raises(Busy):
                    door.admit()
            with in_the_name_of("ann"):
                door.admit(4)  # half of the places
                with pytest.raises(Busy):
                    door.admit(5)
                with door.ticket(), pytest.raises(Busy):
                    door.admit(4)
            with in_the_name_of("cid"), pytest.raises(Busy):
                door.admit(5)
        with in_the_name_of("ann"):
            door.admit(8)
        assert not door._of_owner

    with_engine(test, max_running=2, queue_limit=6)


def test_whoever_is_refused_is_told_when_there_will_be_room() -> None:
    """By the pace of the last answers: so many at once, each of so many seconds."""

    async def test(door: AsyncEngine) -> None:
        with pytest.raises(Busy) as unknown:
            door.admit(4)
        assert unknown.value.retry_after == 1
        with door.ticket():
            await asyncio.sleep(0.05)
        assert 0.05 <= (door._answer_s or 0) < 30
        door._answer_s = 10.0
        with door.ticket(), door.ticket(), pytest.raises(Busy) as known:
            door.admit(4)  # room for one of them: three must end before, at two in ten seconds
        assert known.value.retry_after == 15

    with_engine(test, max_running=1, queue_limit=2)


def test_one_place_serves_many_requests_and_tells_what_its_holder_observes() -> None:
    async def test(door: AsyncEngine) -> None:
        seen: list[tuple[str, bool]] = []
        door.observers.append(lambda output, seconds, first: seen.append((output.text, first)))
        with door.ticket() as ticket:
            for _ in range(3):
                assert [o async for o in door.stream(PROMPT, SHORT, ticket=ticket)]
                assert door.in_flight == 1
            ticket.observe(TokenOutput("", [], "a"))
            ticket.observe(TokenOutput("", [], "b"))
        assert seen == [("a", True), ("b", False)]
        outputs = [o async for o in door.stream(PROMPT, SHORT)]
        assert [first for _, first in seen[2:]] == [True] + [False] * (len(outputs) - 1)

    with_engine(test, max_running=1, queue_limit=1)


@pytest.mark.parametrize(
    ("limits", "tokens", "says"),
    [
        ({"first_token_timeout_s": 0.1}, 0, "No first token came within 0 s"),
        ({"total_timeout_s": 0.6}, 2, "The answer was not finished within 1 s"),
    ],
)
def test_time_limits_abort_the_request(limits: dict[str, float], tokens: int, says: str) -> None:
    async def test(door: AsyncEngine) -> None:
        slowly(door, 0.25)
        came: list[int] = []

        async def read() -> None:
            async for output in door.stream(PROMPT[:30], SamplingParams(max_tokens=400, drafter="none")):
                came.extend(output.token_ids)

        with pytest.raises(TimedOut, match=says):
            await read()
        assert len(came) <= tokens
        assert await asyncio.wrap_future(door.run(lambda e: e.blocks.num_owned)) == 0

    with_engine(test, **limits)


def test_a_failing_step_is_an_error_of_its_requests() -> None:
    async def test(door: AsyncEngine) -> None:
        run, door.engine.runner.run = door.engine.runner.run, raising(RuntimeError("broken kernel at /home/x"))
        with pytest.raises(GenerationFailed) as failed:
            await collect(door, LONG)
        assert "/home/x" not in failed.value.detail
        (batched,) = await asyncio.to_thread(door.generate, [PROMPT], LONG)
        assert (batched.finish_reason, batched.token_ids) == ("error", [])
        assert "broken kernel" in str(batched.error)
        door.engine.runner.run = run
        assert len(await collect(door, SHORT)) == 5

    with_engine(test)


def test_a_dead_thread_fails_what_is_in_flight_and_is_replaced() -> None:
    async def test(door: AsyncEngine) -> None:
        step, door.engine.step = door.engine.step, raising(KeyError("a bug"))  # type: ignore[method-assign]
        with pytest.raises(GenerationFailed):
            await collect(door, LONG)
        with pytest.raises(GenerationFailed):
            await asyncio.to_thread(door.generate, [PROMPT, PROMPT], LONG)
        door.engine.step = step  # type: ignore[method-assign]
        assert door.restarts >= 2
        assert len(await collect(door, SHORT)) == 5

    with_engine(test)


def test_a_lost_device_ends_readiness_first_and_every_stream_with_its_reason() -> None:
    seen: list[tuple[bool, str]] = []

    async def test(door: AsyncEngine) -> None:
        door.on_lost = lambda error: seen.append((door.ready, error.detail))
        slowly(door, 0.05)
        streams = [asyncio.create_task(collect(door, LONG)) for _ in range(2)]
        batch = asyncio.create_task(asyncio.to_thread(door.generate, [PROMPT], LONG))
        while door.in_flight < 3:
            await asyncio.sleep(0.01)
        lost = DeviceLost("The device cuda:0 is lost: an illegal address.")
        door.engine.step = raising(lost)  # type: ignore[method-assign]
        for ended in await asyncio.gather(*streams, batch, return_exceptions=True):
            assert ended is lost
        with pytest.raises(Unavailable):
            await collect(door, SHORT)
        while not seen:
            await asyncio.sleep(0.01)

    with AsyncEngine(make_engine()) as door:
        asyncio.run(asyncio.wait_for(test(door), 60))
    assert seen == [(False, "The device cuda:0 is lost: an illegal address.")]


def test_drain_lets_requests_end_and_takes_no_new_ones() -> None:
    async def test(door: AsyncEngine) -> None:
        running = asyncio.create_task(collect(door, SamplingParams(max_tokens=30, ignore_eos=True)))
        await asyncio.sleep(0.05)
        assert await door.drain(30)
        assert len(await running) == 30
        assert not door.ready
        with pytest.raises(Unavailable):
            await collect(door, LONG)
        with pytest.raises(Unavailable):
            door.generate([PROMPT], SHORT)

    with_engine(test)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_an_engine_without_work_and_who_waits_for_it_keep_no_teams_of_threads() -> None:
    """Whoever computes meanwhile would find more threads than cores, none of which may spin."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    wide = torch.rand(1024, 1024)
    try:
        with AsyncEngine(make_engine()) as door:
            door.generate([PROMPT], SHORT)
            for _ in range(2):  # the second runs in a turn that began without work
                door.run(lambda engine: None).result()
            alone = _own_threads()
            with_team = door.run(lambda engine: (torch.tanh(wide), _own_threads())[1]).result()
            assert with_team == alone + 2
            assert _soon(lambda: _own_threads() == alone)
            torch.tanh(wide)
            assert _own_threads() == alone + 2
            door.generate([PROMPT], SHORT)
            assert _soon(lambda: _own_threads() == alone)
    finally:
        torch.set_num_threads(threads)


def _own_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _soon(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def test_stopping_aborts_what_did_not_end_in_time() -> None:
    async def test(door: AsyncEngine) -> None:
        reasons = []

        async def read() -> None:
            async for output in door.stream(PROMPT, LONG):
                reasons.append(output.finish_reason)

        slowly(door, 0.02)
        reading = asyncio.create_task(read())
        while not reasons:
            await asyncio.sleep(0.01)
        assert not await door.drain(0.05)
        await asyncio.to_thread(door.stop)
        await reading
        assert reasons[-1] == "abort"

    with_engine(test)


def test_a_shut_door_refuses() -> None:
    door = AsyncEngine(make_engine())
    with pytest.raises(Unavailable):
        door.generate([PROMPT], SHORT)
    with pytest.raises(Unavailable):
        door.run(lambda engine: None)
    with door:
        assert len(door.generate([PROMPT], SHORT)[0].token_ids) == 5
    assert not [thread for thread in threading.enumerate() if thread.name == "folio-engine"]


def raising(error: Exception) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        raise error

    return call
