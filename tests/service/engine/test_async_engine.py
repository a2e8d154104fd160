"""The engine's thread: streams, aborts, drain, and what happens when it dies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from service.engine.async_engine import AsyncEngine
from service.engine.request import SamplingParams
from service.errors import DeviceLost, GenerationFailed, InvalidRequest, Unavailable

from .conftest import make_engine

PROMPT = list(range(3, 60))
LONG = SamplingParams(max_tokens=400, ignore_eos=True)


def with_engine(test: Callable[[AsyncEngine], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        engine = AsyncEngine(make_engine(**options))
        await engine.start()
        try:
            await asyncio.wait_for(test(engine), 60)
        finally:
            await engine.stop()
        engine.engine.check_integrity()
        assert engine.engine.blocks.num_owned == 0

    asyncio.run(main())


async def collect(engine: AsyncEngine, params: SamplingParams) -> list[int]:
    return [t async for output in engine.generate(PROMPT, params) for t in output.token_ids]


def test_concurrent_streams_equal_the_synchronous_engine() -> None:
    each = [SamplingParams(max_tokens=10, temperature=0.8, seed=i, ignore_eos=True) for i in range(5)]
    expected = [make_engine().generate([PROMPT], p)[0].token_ids for p in each]

    async def test(engine: AsyncEngine) -> None:
        assert await asyncio.gather(*(collect(engine, p) for p in each)) == expected

    with_engine(test)


def test_leaving_a_stream_gives_its_pages_back() -> None:
    async def test(engine: AsyncEngine) -> None:
        stream = engine.generate(PROMPT, LONG)
        await anext(stream)
        assert await engine.run(lambda e: e.blocks.num_owned) > 0
        await stream.aclose()
        assert await engine.run(lambda e: e.blocks.num_owned) == 0
        assert engine.num_in_flight == 0

    with_engine(test)


def test_abort_ends_the_stream_with_its_reason() -> None:
    async def test(engine: AsyncEngine) -> None:
        reasons = []
        async for output in engine.generate(PROMPT, LONG, "mine"):
            await engine.abort("mine")
            reasons.append(output.finish_reason)
        assert reasons[-1] == "abort"

    with_engine(test)


def test_refusals_reach_the_caller() -> None:
    async def test(engine: AsyncEngine) -> None:
        with pytest.raises(InvalidRequest, match="empty"):
            await anext(engine.generate([], LONG))

    with_engine(test)


def test_a_failing_step_is_an_error_of_its_requests() -> None:
    async def test(engine: AsyncEngine) -> None:
        run, engine.engine.runner.run = engine.engine.runner.run, raising(RuntimeError("broken kernel"))
        with pytest.raises(GenerationFailed, match="broken kernel"):
            await collect(engine, LONG)
        engine.engine.runner.run = run
        assert len(await collect(engine, SamplingParams(max_tokens=5, ignore_eos=True))) == 5

    with_engine(test)


def test_a_dead_thread_fails_what_is_in_flight_and_is_replaced() -> None:
    async def test(engine: AsyncEngine) -> None:
        step, engine.engine.step = engine.engine.step, raising(KeyError("a bug"))  # type: ignore[method-assign]
        with pytest.raises(GenerationFailed, match="a bug"):
            await collect(engine, LONG)
        engine.engine.step = step  # type: ignore[method-assign]
        assert engine.restarts >= 1
        assert len(await collect(engine, SamplingParams(max_tokens=5, ignore_eos=True))) == 5

    with_engine(test)


def test_a_lost_device_ends_readiness_and_then_the_process() -> None:
    async def main() -> None:
        ended: list[tuple[bool, str]] = []
        engine = AsyncEngine(make_engine(), lambda error: ended.append((engine.ready, error.detail)))
        await engine.start()
        engine.engine.runner.run = raising(RuntimeError("CUDA error: an illegal memory access\nmore lines"))
        with pytest.raises(DeviceLost):
            await asyncio.wait_for(collect(engine, LONG), 60)
        await asyncio.to_thread(engine._thread.join)  # type: ignore[union-attr]
        assert ended == [(False, "The device cpu is lost: CUDA error: an illegal memory access. Start anew.")]
        assert not engine.ready
        assert engine.restarts == 0

    asyncio.run(main())


def test_drain_lets_requests_end_and_takes_no_new_ones() -> None:
    async def test(engine: AsyncEngine) -> None:
        running = asyncio.create_task(collect(engine, SamplingParams(max_tokens=30, ignore_eos=True)))
        await asyncio.sleep(0.05)
        assert await engine.drain(30)
        assert len(await running) == 30
        assert not engine.ready
        with pytest.raises(Unavailable):
            await collect(engine, LONG)

    with_engine(test)


def raising(error: Exception) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        raise error

    return call
