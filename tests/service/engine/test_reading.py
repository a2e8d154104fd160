"""Sequences that are only read: in chunks behind all others' rows, whole at last whatever comes between."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from service.engine.async_engine import AsyncEngine
from service.engine.engine import Engine
from service.engine.params import SamplingParams
from service.engine.request import Reading
from service.engine.step import Slice
from service.errors import GenerationFailed

from .conftest import make_engine, make_model

DENSE = SamplingParams(max_tokens=60, attention="dense", drafter="none", ignore_eos=True)


def tokens(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 97) for _ in range(length)]


class States:
    """What a reading was told."""

    def __init__(self, count: int) -> None:
        self.starts: list[int] = []
        self.rows = np.full((count, 48), np.nan)

    def keep(self, start: int, hidden: Tensor) -> None:
        self.rows[start : start + len(hidden)] = hidden.numpy()
        self.starts.append(start)


def of_model(token_ids: list[int]) -> np.ndarray:
    """The hidden states that transformers gives, without pages."""
    with torch.inference_mode():
        return make_model().model(input_ids=torch.tensor([token_ids])).last_hidden_state[0].numpy()


def recorded(engine: Engine) -> list[list[Slice]]:
    steps: list[list[Slice]] = []
    forward = engine.runner.run
    engine.runner.run = lambda slices: steps.append(list(slices)) or forward(slices)  # type: ignore[method-assign, func-returns-value]
    return steps


def test_hidden_states_do_not_depend_on_chunks_and_the_cache_is_left_alone() -> None:
    ids, states = tokens(0, 300), States(300)
    engine = make_engine()
    with AsyncEngine(engine) as door:
        door.generate([ids], DENSE)  # its pages are in the cache: they show no hidden states
        cached = len(engine.blocks._published)
        door.read(ids, Reading(on_chunk=states.keep))
    assert states.starts == [0, 64, 128, 192, 256]
    np.testing.assert_allclose(states.rows, of_model(ids), atol=1e-9)
    assert len(engine.blocks._published) == cached
    engine.check_integrity()
    assert engine.blocks.num_owned == 0


def test_a_reading_takes_the_rows_that_others_leave() -> None:
    """A prompt is read in the same chunks with a reading beside it as without; no step is longer than its budget."""
    chunks = []
    for reading in (False, True):
        engine = make_engine(pages=128)
        steps = recorded(engine)
        client = engine.add_request(tokens(1, 20), DENSE)
        while not engine._requests[client].num_output:
            engine.step()
        background = engine.add_request(tokens(2, 400), reading=Reading()) if reading else ""
        steps.clear()
        engine.step()
        asked = engine.add_request(tokens(3, 250), DENSE)
        for _ in range(40):
            engine.step()
        by_step = [{part.request.id: part.num_rows for part in step} for step in steps]
        chunks.append([rows[asked] for rows in by_step if asked in rows])
        assert all(client in rows for rows in by_step)
        assert sum(rows.get(background, 0) for rows in by_step) == 400 * reading
        assert max(sum(rows.values()) for rows in by_step) <= 64
    assert chunks[0] == chunks[1]


def test_a_reading_gives_its_pages_to_requests_and_begins_anew() -> None:
    engine, states = make_engine(pages=24), States(300)
    ids = tokens(4, 300)
    background = engine.add_request(ids, reading=Reading(on_chunk=states.keep))
    engine.step()
    asked = [engine.add_request(tokens(seed, 120), DENSE) for seed in (5, 6)]
    ended = []
    while engine.has_work:
        ended += [output.request_id for output in engine.step() if output.finished]
        engine.check_integrity()
    assert sorted(ended) == sorted([background, *asked])
    assert ended[-1] == background
    assert engine.scheduler.num_preemptions > 0
    assert states.starts.count(0) > 1
    np.testing.assert_allclose(states.rows, of_model(ids), atol=1e-9)


def test_a_reading_that_fails_fails_alone() -> None:
    def full(*_: object) -> None:
        raise OSError("disk full")

    with AsyncEngine(make_engine()) as door:
        with pytest.raises(GenerationFailed, match="disk full"):
            door.read(tokens(0, 30), Reading(on_read=full))
        assert door.in_flight == 0
        assert len(door.generate([tokens(0, 30)], DENSE)[0].token_ids) == 60


def test_warming_runs_beside_requests(tmp_path: Path) -> None:
    """The document is warm while another client's answer is under way."""
    engine = make_engine(warm_folder=tmp_path)
    client = engine.add_request(tokens(1, 20), DENSE)
    ids, written = tokens(2, 100), []
    keep = Reading(on_read=lambda request: written.append(engine.keep_warm("book", request)))
    warmed = engine.add_request(ids, SamplingParams(attention="dense"), reading=keep)
    outputs = []
    while warmed in engine._requests:
        outputs += engine.step()
    assert written == [tmp_path / written[0].name]
    assert client in engine._requests
    again = make_engine(warm_folder=tmp_path)
    name = again.add_request([*ids, 7], DENSE)
    again.step()
    assert again._requests[name].cached_tokens == 96
