"""The cost model against what was measured, and the laws that the simulation must keep."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.bench import scaling as bench
from eval.scaling.cost import H200, LLAMA_8B, Machine, Shape, Work, decode, prefill, retrieval
from eval.scaling.fit import Measurement, committed, fit, summary
from eval.scaling.simulation import Question, Service, Simulation, compare, poisson, rounds, zipf_documents
from service.cluster.affinity import Affinity, RandomChoice

SERVICE = Service(read_s=1.0, answer_s=0.1, document_tokens=1000, cache_tokens=4000)


def test_sizes_of_a_known_model() -> None:
    assert LLAMA_8B.layer_weights + 2 * LLAMA_8B.head_weights == pytest.approx(8.03e9, rel=0.001)
    assert LLAMA_8B.kv_bytes_per_token == 128 * 1024  # as docs/operations.md says


@given(st.integers(1, 50_000), st.integers(0, 49_999))
def test_prefill_in_two_parts_is_the_same_work(tokens: int, cut: int) -> None:
    cut = min(cut, tokens - 1)
    shape = Shape("s", 2, 64, 4, 2, 16, 128, 100)
    whole, first, second = prefill(shape, tokens), prefill(shape, cut) if cut else Work(), prefill(shape, tokens, cut)
    assert first.attention_flops + second.attention_flops == pytest.approx(whole.attention_flops)
    logits = 2 * shape.head_weights * (1 if cut else 0)
    assert first.linear_flops + second.linear_flops == pytest.approx(whole.linear_flops + logits)


def test_a_tree_reads_what_one_row_reads() -> None:
    one, tree = decode(LLAMA_8B, 1000), decode(LLAMA_8B, 1000, nodes=16)
    assert tree.bytes == one.bytes
    assert tree.linear_flops == 16 * one.linear_flops
    assert decode(LLAMA_8B, 1000, visited=100).bytes < one.bytes
    assert retrieval(1000, together=10).bytes == retrieval(1000).bytes / 10


@given(st.floats(1e9, 1e13), st.floats(1e10, 1e15), st.floats(1e10, 1e15), st.floats(1e-5, 0.1))
def test_fit_finds_the_rates_that_made_the_times(
    bandwidth: float, linear: float, attention: float, step: float
) -> None:
    machine = Machine("made", bandwidth, linear, attention, step)
    works = [Work(1e9), Work(0, 1e12), Work(0, 0, 1e12), Work(0, 0, 0, 5), Work(1e9, 1e12, 1e12, 1)]
    found = fit([Measurement("", "", machine.seconds(work), work) for work in works])
    assert found.bytes_per_s == pytest.approx(bandwidth, rel=1e-3)
    assert found.linear_flops_per_s == pytest.approx(linear, rel=1e-3)
    assert found.attention_flops_per_s == pytest.approx(attention, rel=1e-3)
    assert found.step_s == pytest.approx(step, rel=1e-3)


def test_fit_refuses_what_it_cannot_tell_apart() -> None:
    with pytest.raises(ValueError, match="apart"):
        fit([Measurement("", "", 1.0, Work(1e9))])


def test_the_model_is_near_what_was_measured() -> None:
    """The bounds that docs/scaling.md states."""
    found = summary()
    assert found["median_error"] < 0.25
    assert found["largest_error"] < 0.50
    assert len(committed()) >= 10


def test_a_gpu_is_bound_by_reading_in_decode_and_by_operations_in_prefill() -> None:
    step, read = decode(LLAMA_8B, 131072), prefill(LLAMA_8B, 131072)
    assert step.bytes / H200.bytes_per_s > 0.9 * H200.seconds(step)
    assert read.bytes / H200.bytes_per_s < 0.1 * H200.seconds(read)


arrivals = st.lists(st.tuples(st.floats(0, 50), st.integers(0, 9)), max_size=60)
policies = st.sampled_from([Affinity, RandomChoice])


@given(arrivals, st.integers(1, 6), policies, st.floats(0, 60))
def test_what_arrives_is_served_or_waits(
    asked: list[tuple[float, int]], replicas: int, policy: type, until: float
) -> None:
    questions = [Question(*one) for one in asked]
    found = Simulation(SERVICE, replicas, policy()).run(questions, until)
    assert found.arrivals == found.served + found.queued
    assert found.arrivals == sum(question.arrives <= until for question in questions)
    whole = Simulation(SERVICE, replicas, policy()).run(questions)
    assert (whole.served, whole.queued) == (len(questions), 0)
    assert all(latency >= SERVICE.answer_s - 1e-9 for latency in whole.latencies)


@given(arrivals, st.integers(1, 6))
def test_a_replica_works_no_longer_than_the_clock(asked: list[tuple[float, int]], replicas: int) -> None:
    found = Simulation(SERVICE, replicas, Affinity()).run([Question(*one) for one in asked])
    assert all(0 <= share <= 1 + 1e-9 for share in found.busy_share)
    spent = found.served * SERVICE.answer_s + (found.lookups - found.hits) * SERVICE.read_s
    assert sum(found.busy_share) * found.seconds == pytest.approx(spent)


@given(arrivals, st.integers(2, 8))
def test_more_replicas_than_one_never_give_fewer_hits(asked: list[tuple[float, int]], replicas: int) -> None:
    """Where nobody is over their share, each replica sees a part of the documents that the one saw."""
    questions = [Question(*one) for one in asked]
    one, many = (Simulation(SERVICE, count, Affinity(slack=1000)).run(questions) for count in (1, replicas))
    assert many.hits >= one.hits


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_hits_under_affinity_grow_from_1_to_8_to_64_replicas(seed: int) -> None:
    def questions() -> list[Question]:
        return poisson(zipf_documents(100, 1.0, seed), 300, 2.0, seed)

    hits = [Simulation(SERVICE, count, Affinity()).run(questions()).hits for count in (1, 8, 64)]
    assert hits == sorted(hits)


def test_affinity_beats_chance() -> None:
    found = compare(SERVICE, 8, lambda: poisson(zipf_documents(40, 0.5, 1), 2000, 4.0, 2))
    assert found["affinity"].hit_rate > 3 * found["random"].hit_rate


def test_the_same_seed_gives_the_same_outcome() -> None:
    def once() -> object:
        return Simulation(SERVICE, 4, RandomChoice(3)).run_clients(4, rounds(10, 3, seed=5))

    assert once() == once()


def test_clients_in_a_closed_loop_keep_their_number_in_flight() -> None:
    found = Simulation(SERVICE, 2, Affinity()).run_clients(3, rounds(6, 2, seed=1))
    assert (found.arrivals, found.served, found.queued) == (12, 12, 0)
    alone = Simulation(SERVICE, 1, Affinity()).run_clients(1, rounds(4, 2, seed=1))
    assert alone.seconds == pytest.approx(4 * SERVICE.read_s + 8 * SERVICE.answer_s)


def test_zipf_is_as_skewed_as_it_says() -> None:
    drawn = list(islice(zipf_documents(100, 1.0, seed=1), 20_000))
    assert drawn.count(0) / drawn.count(9) == pytest.approx(10, rel=0.25)
    uniform = list(islice(zipf_documents(10, 0.0, seed=1), 10_000))
    assert uniform.count(0) == pytest.approx(1000, rel=0.15)


def test_predictions_for_a_gpu_say_that_they_are_predictions() -> None:
    rows = bench.predictions()
    assert {row["state"] for row in rows} == {"not yet measured"}
    dense, sparse = (next(row for row in rows if what in row["what"]) for what in ("dense prefill of 131072", "0.1"))
    assert dense["seconds"] > 2 * sparse["seconds"]


def test_the_check_finds_no_error_in_a_run_that_the_simulation_made(tmp_path: Path) -> None:
    service = Service(1.0, 0.1, 1, 7)
    run = {"replicas": 4, "documents": 20, "rounds": 3, "seed": 1, "cached_documents_per_replica": 7}
    for policy in (Affinity, RandomChoice):
        hits = Simulation(service, 4, policy()).run_clients(1, rounds(20, 3, seed=1)).hits
        run["affinity" if policy is Affinity else "random"] = {"hits": hits, "questions": 60}
    one = {"requests_per_s": {"1": [2.0], "2": [3.9]}, "clients_per_replica": 4, "last": {"2": {"requests": 400}}}
    figures = {"routing": [run], "throughput": one}
    assert bench.check(tmp_path) is None
    (tmp_path / "cluster.json").write_text(json.dumps({"figures": figures}))
    found = bench.check(tmp_path)
    assert found is not None
    for policy in ("affinity", "random"):
        row = found["routing"][0][policy]
        low, high = row["simulated_range"]
        assert low <= row["measured_hits"] <= high
        assert abs(row["error_of_hit_rate"]) < 0.15
    assert found["throughput"]["error"] == pytest.approx(4.0 / 3.9 - 1, abs=0.02)
