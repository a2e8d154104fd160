"""Routing by document: same document, same replica; over its share, the next; one leaves, only its documents move."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cluster.affinity import Affinity, RandomChoice, ranking

names = st.lists(st.text("abcdef0123456789", min_size=1, max_size=8), min_size=1, max_size=12, unique=True)
keys = st.text(max_size=20)


@given(keys, names)
def test_a_document_stays_with_its_replica(key: str, replicas: list[str]) -> None:
    idle = dict.fromkeys(replicas, 0)
    first = Affinity().order(key, idle)[0]
    assert Affinity().order(key, dict(reversed(idle.items())))[0] == first
    assert sorted(Affinity().order(key, idle)) == sorted(replicas)


@given(st.lists(keys, min_size=1, max_size=50), names, st.data())
def test_only_the_documents_of_a_replica_that_leaves_move(
    documents: list[str], replicas: list[str], data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(replicas))
    rest = [replica for replica in replicas if replica != gone]
    for document in documents:
        before, after = ranking(document, replicas), ranking(document, rest)
        assert after == [replica for replica in before if replica != gone]


@given(keys, st.dictionaries(st.text("abcdef", min_size=1), st.integers(0, 40), min_size=1))
def test_a_replica_over_its_share_is_passed_over_for_the_next_in_line(key: str, loads: dict[str, int]) -> None:
    affinity = Affinity()
    ranked, share = ranking(key, loads), affinity.share(loads)
    order = affinity.order(key, loads)
    within = [replica for replica in ranked if loads[replica] < share]
    assert within, "somebody is always within the share"
    assert order == within + [replica for replica in ranked if loads[replica] >= share]


@given(st.integers(1, 12), st.integers(1, 300), st.integers(1, 6))
def test_no_replica_is_given_more_than_its_share(replicas: int, requests: int, documents: int) -> None:
    affinity = Affinity()
    loads = {f"r{i}": 0 for i in range(replicas)}
    for i in range(requests):
        share = affinity.share(loads)
        chosen = affinity.order(f"document {i % documents}", loads)[0]
        loads[chosen] += 1
        assert loads[chosen] <= share


@given(st.dictionaries(st.text("abcdef", min_size=1), st.integers(0, 40), min_size=1))
def test_without_a_key_the_least_loaded_is_first(loads: dict[str, int]) -> None:
    order = Affinity().order(None, loads)
    assert [loads[replica] for replica in order] == sorted(loads.values())


def test_requests_without_a_key_are_spread_over_idle_replicas() -> None:
    affinity, loads = Affinity(), dict.fromkeys("abcd", 0)
    taken = Counter(affinity.order(None, loads)[0] for _ in range(400))
    assert min(taken.values()) > 50


def test_documents_are_spread_evenly() -> None:
    loads = {f"replica-{i}": 0 for i in range(8)}
    taken = Counter(Affinity().order(f"document {i}", loads)[0] for i in range(4000))
    assert min(taken.values()) > 400
    assert max(taken.values()) < 600


def test_a_few_requests_are_never_over_the_share() -> None:
    affinity = Affinity(slack=4)
    favourite = ranking("book", ["a", "b"])[0]
    loads = {"a": 0, "b": 0}
    for _ in range(4):
        assert affinity.order("book", loads)[0] == favourite
        loads[favourite] += 1
    assert affinity.order("book", loads)[0] != favourite


def test_the_weights_are_those_of_every_process() -> None:
    """A change here moves every document of a running cluster at the upgrade."""
    assert ranking("a document", ["one", "two", "three"]) == ["one", "two", "three"]


@pytest.mark.parametrize("arguments", [{"spill": 1.0}, {"slack": 0}])
def test_senseless_bounds_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="spill must be above 1"):
        Affinity(**arguments)  # type: ignore[arg-type]


def test_random_choice_ignores_the_key() -> None:
    router = RandomChoice(seed=1)
    chosen = Counter(router.order("book", dict.fromkeys("ab", 0))[0] for _ in range(1000))
    assert 400 < chosen["a"] < 600
