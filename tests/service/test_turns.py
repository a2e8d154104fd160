"""Turns between owners."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from service.turns import Turns


def worker(ended: list[str], name: str, gate: threading.Event | None = None) -> Callable[[], str]:
    def work() -> str:
        if gate is not None:
            assert gate.wait(10)
        ended.append(name)
        return name

    return work


def test_one_owner_leaves_a_place_to_others() -> None:
    async def run() -> list[str]:
        turns, gate, ended = Turns(2), threading.Event(), list[str]()
        mine = [asyncio.ensure_future(turns.run("bob", worker(ended, f"bob {n}", gate))) for n in range(3)]
        await asyncio.sleep(0.05)
        assert await asyncio.wait_for(turns.run("alice", worker(ended, "alice")), 5) == "alice"
        gate.set()
        await asyncio.gather(*mine)
        return ended

    assert asyncio.run(run()) == ["alice", "bob 0", "bob 1", "bob 2"]


def test_owners_who_wait_take_turns() -> None:
    async def run() -> list[str]:
        turns, gate, ended = Turns(2), threading.Event(), list[str]()
        holding = [asyncio.ensure_future(turns.run(owner, worker([], "", gate))) for owner in ("x", "y")]
        await asyncio.sleep(0.05)
        names = ["bob 0", "bob 1", "bob 2", "ann 0", "ann 1"]
        waiting = [asyncio.ensure_future(turns.run(name[:3], worker(ended, name))) for name in names]
        await asyncio.sleep(0.05)
        gate.set()
        await asyncio.gather(*holding, *waiting)
        return ended

    ended = asyncio.run(run())
    assert set(ended[:2]) == {"bob 0", "ann 0"}
    assert ended[-1] == "bob 2"


def test_who_leaves_while_he_waits_gives_up_his_turn() -> None:
    async def run() -> list[str]:
        turns, gate, ended = Turns(2), threading.Event(), list[str]()
        first = asyncio.ensure_future(turns.run("bob", worker(ended, "first", gate)))
        await asyncio.sleep(0.05)
        second = asyncio.ensure_future(turns.run("bob", worker(ended, "second")))
        third = asyncio.ensure_future(turns.run("bob", worker(ended, "third")))
        await asyncio.sleep(0.05)
        second.cancel()
        gate.set()
        await asyncio.gather(first, third)
        return ended

    assert asyncio.run(run()) == ["first", "third"]


def test_a_place_is_free_again_when_the_work_has_ended_not_when_its_asker_left() -> None:
    async def run() -> None:
        turns, gate, ended = Turns(2), threading.Event(), list[str]()
        first = asyncio.ensure_future(turns.run("bob", worker(ended, "first", gate)))
        await asyncio.sleep(0.05)
        first.cancel()
        second = asyncio.ensure_future(turns.run("bob", worker(ended, "second")))
        await asyncio.sleep(0.1)
        assert not ended
        gate.set()
        assert await second == "second"
        assert ended == ["first", "second"]

    asyncio.run(run())


def test_what_the_work_raises_is_raised_and_frees_the_place() -> None:
    def fails() -> None:
        raise ValueError("no")

    async def run() -> None:
        turns = Turns(2)
        for _ in range(3):
            with pytest.raises(ValueError, match="no"):
                await turns.run("bob", fails)

    asyncio.run(run())
