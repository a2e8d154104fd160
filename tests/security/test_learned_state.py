"""What one owner's requests teach the drafters, and leave in the prefix cache, tells another owner nothing.

Bob guesses what Alice was answered: he forces his guess as the beginning of an answer of his own, and counts in his
usage how much of it was drafted, accepted and found in the cache. In the world where Alice has asked before he must
count what he counts in the world where she has not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from drafters.heads.folder import HEADS, save_head
from drafters.learned import Learned, LearnedByOwner
from drafters.machine_profile import MachineProfile
from drafters.options import DRAFTERS, RULES
from retrieval.types import DEFAULT_OWNER
from service.engine.async_engine import AsyncEngine
from service.engine.drafting.target import TargetView
from service.engine.loading.checkpoint import prepare
from service.engine.outputs import Generation
from service.engine.params import DraftSources, SamplingParams

from ..service.engine.conftest import make_engine, make_model

TOKENS = 12
MORE = ["fusion:always=true", "goodput:inner=recycling", "recycling:ranks=4", "rag:target_mix=2,context=32,chunk=16"]
HOW = dict.fromkeys(("rag", "cascade", "fusion"), ":context=32,chunk=16")  # shorter than the prompts
HOW["self_speculation"] = ":every=1000000"  # its search goes by the clock
SPECS = [*(name + HOW.get(name, "") for name in DRAFTERS), *MORE]
OF_A_HEAD = ["trained", "auto", "fusion:context=32,chunk=16"]
FAST = [spec for spec in SPECS if spec != "trained"]
SPECS += [f"multi_round:rule={rule}" for rule in RULES[1:]]
_firsts = itertools.count(10_000, 10_000)


@pytest.fixture(autouse=True)
def _the_machine_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is chosen by measured times is chosen by the same times in every world."""

    class Unhurried(Event):
        def is_set(self) -> bool:
            return False

    def step_times(self: MachineProfile, batch: int, context: int, most: int) -> np.ndarray:
        return 100.0 + batch * np.arange(1.0, most + 2)

    monkeypatch.setattr(MachineProfile, "ready", True)
    monkeypatch.setattr(MachineProfile, "step_times", step_times)
    monkeypatch.setattr(MachineProfile, "seconds", lambda self, rows, contexts: 100.0 + sum(rows))
    monkeypatch.setattr("drafters.research.overlap.Event", Unhurried)


@pytest.fixture(scope="module")
def draft_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("draft")
    make_model(seed=3).save_pretrained(folder)
    return folder


class Corpus:
    """A datastore that everybody may see: `datastore` has nothing to draw on without one."""

    tokenizer = "corpus"

    def __init__(self) -> None:
        self._ids = np.random.default_rng(1).integers(3, 97, 400).tolist()

    def continuations(
        self, context: Sequence[int], max_match: int, min_match: int, max_occurrences: int, length: int
    ) -> tuple[int, np.ndarray]:
        found = [i + 1 for i, token in enumerate(self._ids) if token == context[-1]][:max_occurrences]
        rows = [(self._ids[i : i + length] + [-1] * length)[:length] for i in found]
        return (2, np.array(rows)) if rows else (0, np.empty((0, length), dtype=np.int64))


def door_of(draft_model: Path, **options: Any) -> AsyncEngine:
    return AsyncEngine(make_engine(pages=256, draft_model=str(draft_model), **options))


def prompt(seed: int, length: int = 40) -> list[int]:
    return np.random.default_rng(seed).integers(3, 97, length).tolist()


def ask(door: AsyncEngine, owner: str, seed: int, spec: str, **more: Any) -> Generation:
    """One request; the text that its owner lends the drafter is his prompt's."""
    params = SamplingParams(max_tokens=TOKENS, ignore_eos=True, drafter=spec, owner=owner, seed=seed, **more)
    sources = DraftSources(documents=[prompt(seed)], datastore=Corpus())
    [found] = door.generate([prompt(seed)], params, [sources])
    assert found.error is None
    assert "drafting" in found.stats
    assert found.stats["drafting"]["failures"] == 0
    return found


def counted(found: Generation) -> dict[str, Any]:
    """All that Bob can count: of drafting, the cache and the steps; and, which is his own, what he was told."""
    drafting = {name: count for name, count in found.stats["drafting"].items() if not name.endswith("_seconds")}
    rest = {name: found.stats[name] for name in ("cached_tokens", "miss_reason", "decode_steps")}
    return {"ids": found.token_ids, "sources": found.sources, **drafting, **rest}


@pytest.fixture(scope="module")
def worlds(draft_model: Path) -> Iterator[dict[bool, AsyncEngine]]:
    """An engine that Alice has asked (True), and one that she has not."""
    with door_of(draft_model) as asked, door_of(draft_model) as unasked:
        yield {True: asked, False: unasked}


def bob_counts(
    door: AsyncEngine, spec: str, first: int, trials: int, alice: bool, spy: str, **more: Any
) -> list[dict[str, Any]]:
    """What ``spy`` counts of right and of wrong guesses, where Alice has asked before each, or has not.

    first: seed of the first trial's prompt; none of the prompts has been asked before.
    """
    door.engine.drafting.learned = LearnedByOwner(1 << 30)
    counts = []
    for trial in range(first, first + trials):
        secret = ask(door, "nobody", trial, "none").token_ids  # in both worlds: it teaches nothing
        if alice:
            ask(door, "alice", trial, spec, **more)
            ask(door, "alice", trial, spec, forced=tuple(secret))
        wrong = np.random.default_rng(trial).permutation(secret).tolist()
        counts.append(counted(ask(door, spy, trial, spec, **more)))  # her own words, in case they are kept
        for guess in (secret, wrong):
            counts.append(counted(ask(door, spy, trial + 5000, spec, forced=tuple(guess), **more)))
    door.engine.check_integrity()
    return counts


def compared(worlds: dict[bool, AsyncEngine], spec: str, trials: int, spy: str, **more: Any) -> list[Any]:
    """What is counted in the two worlds.

    Over prompts that no other test has asked there: how long pages stay is a channel that remains (SECURITY.md).
    """
    first = next(_firsts)
    return [bob_counts(door, spec, first, trials, alice, spy, **more) for alice, door in worlds.items()]


@pytest.mark.parametrize("spec", FAST)
def test_bobs_guesses_fare_the_same_whether_alice_has_asked(worlds: dict[bool, AsyncEngine], spec: str) -> None:
    asked, unasked = compared(worlds, spec, 1, "bob")
    assert asked == unasked


@pytest.fixture(scope="module")
def worlds_of_a_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, AsyncEngine]]:
    """The same where the draft model is a trained drafter."""
    folder, target = tmp_path_factory.mktemp("head"), TargetView(prepare("llama", make_model()))
    head = HEADS["eagle3"](HEADS["eagle3"].configure(target, window=16), target)
    head.share(target)
    save_head(head, folder)
    with door_of(folder) as asked, door_of(folder) as unasked:
        yield {True: asked, False: unasked}


@pytest.mark.parametrize("spec", OF_A_HEAD)
def test_a_trained_drafter_tells_bob_nothing(worlds_of_a_head: dict[bool, AsyncEngine], spec: str) -> None:
    asked, unasked = compared(worlds_of_a_head, spec, 1, "bob")
    assert asked == unasked
    assert any(count["drafted"] for count in asked)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec != "trained"])
def test_over_fifty_trials(worlds: dict[bool, AsyncEngine], spec: str, temperature: float) -> None:
    asked, unasked = compared(worlds, spec, 50, "bob", temperature=temperature)
    assert asked == unasked


@pytest.mark.parametrize("spec", ["auto", "recycling", "fusion:always=true"])
def test_the_attack_would_tell(worlds: dict[bool, AsyncEngine], spec: str) -> None:
    """The same counts do differ where both are one owner: what is compared above can be told apart."""
    asked, unasked = compared(worlds, spec, 1, "alice")
    assert asked != unasked


def test_pages_are_found_by_their_owner_alone_unless_they_are_for_everyone(draft_model: Path) -> None:
    for scope, found in (("owner", 0), ("everyone", 32)):
        with door_of(draft_model, prefix_scope=scope) as door:
            cold = ask(door, "alice", 1, "none")
            assert cold.stats["cached_tokens"] == 0
            assert ask(door, "bob", 1, "none").stats["cached_tokens"] == found
            again = ask(door, "alice", 1, "none")
            assert again.stats["cached_tokens"] == 32
            assert again.token_ids == cold.token_ids


def test_warmed_pages_are_their_owners(tmp_path: Path, draft_model: Path) -> None:
    kept = prompt(1, 64)
    with door_of(draft_model, warm_folder=tmp_path) as door:
        door.warm("d", kept)
    with door_of(draft_model, warm_folder=tmp_path) as door:
        asked = {"max_tokens": 1, "ignore_eos": True}
        [bobs] = door.generate([[*kept, 5]], SamplingParams(owner="bob", **asked))
        [own] = door.generate([[*kept, 5]], SamplingParams(owner=DEFAULT_OWNER, **asked))
    assert bobs.stats["cached_tokens"] == 0
    assert own.stats["cached_tokens"] == 64


def test_memory_is_bounded_and_the_oldest_owner_goes_first() -> None:
    one = Learned()
    one.successors(1000, 8)
    room = 3 * one.nbytes
    kept = LearnedByOwner(room)
    for owner in ("a", "b", "c", "a", "d", "e"):
        kept.of(owner).successors(1000, 8)
        assert kept.nbytes <= room + one.nbytes
    first = kept.of("a")
    assert (first.successors(1000, 8).ids == -1).all()
    assert len(kept) <= 4
    table = first.successors(1000, 8)
    for ranks in (1, 2, 3):  # nor does one owner fill it by asking for many tables
        first.successors(1000, ranks)
    assert first.successors(1000, 8) is not table
    assert first.nbytes < 2 * one.nbytes
    assert first.layer_search(4, 0.5, 25) is not kept.of("b").layer_search(4, 0.5, 25)


def test_a_forgotten_owner_is_answered_the_same(draft_model: Path) -> None:
    told = []
    for room in (0, 1 << 30):
        with door_of(draft_model, learned_memory=room) as door:
            told.append([ask(door, owner, 1, "auto").token_ids for owner in ("alice", "bob", "alice", "bob")])
            assert len(door.engine.drafting.learned) == (1 if room == 0 else 2)
    assert told[0] == told[1]
