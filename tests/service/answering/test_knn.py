"""kNN-LM over the engine, the datastores of a data folder, and the ways to ask for both."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from retrieval.errors import DatastoreMismatch, NotFound
from retrieval.knn.decoding import KnnOptions
from retrieval.knn.search import ExactSearch, ListSearch, Search
from retrieval.knn.store import Datastore, StoreBuilder
from retrieval.library import Library
from service.answering.datastores import Datastores
from service.answering.knn import KnnRequest, build, encode, hidden_states, identity
from service.answering.prompting.encoding import Encoder
from service.engine.async_engine import AsyncEngine
from service.engine.outputs import Generation
from service.engine.params import SamplingParams
from service.errors import PromptTooLong

Folio = Callable[..., tuple[int, str, str]]
TEXTS = [(("a", 1), "The bridge was built by Ada Miller. " * 12), (("b", 1), "The mill belonged to the parish. " * 9)]


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[AsyncEngine]:
    with AsyncEngine.from_pretrained(str(tiny_model), kv_memory=8 << 20, page_size=16, drafter="none") as door:
        yield door


@pytest.fixture(scope="module")
def store(engine: AsyncEngine, tmp_path_factory: pytest.TempPathFactory) -> Datastore:
    builder = StoreBuilder(tmp_path_factory.mktemp("knn") / "s", identity(engine.engine.loaded))
    assert build(engine, TEXTS, builder)
    return Datastore.open(builder.finish(lists=12))


@pytest.fixture
def prompt(engine: AsyncEngine) -> list[int]:
    return encode(Encoder(engine.engine.tokenizer), "Who built the bridge? Ada")


def generate(engine: AsyncEngine, prompt: list[int], params: SamplingParams, request: KnnRequest) -> Generation:
    (found,) = engine.generate([prompt], params, mixture=request)
    return found


@pytest.fixture(autouse=True)
def _pages_return(engine: AsyncEngine) -> Iterator[None]:
    yield
    engine.engine.check_integrity()
    assert engine.engine.blocks.num_owned == 0


def test_an_entry_is_the_state_before_its_token(engine: AsyncEngine, store: Datastore) -> None:
    ids = encode(Encoder(engine.engine.tokenizer), TEXTS[0][1])
    assert store.values[: len(ids) - 1].tolist() == ids[1:]
    assert store.offsets.tolist() == [0, len(ids) - 1]
    states = hidden_states(engine, ids[:40])
    np.testing.assert_allclose(store.floats(np.arange(40)), states, rtol=2**-7, atol=1e-4)


@pytest.mark.parametrize("params", [{}, {"temperature": 0.8, "seed": 3}], ids=["greedy", "sampled"])
def test_without_weight_the_model_speaks_alone(
    engine: AsyncEngine, store: Datastore, prompt: list[int], params: dict[str, float]
) -> None:
    chosen = SamplingParams(max_tokens=40, ignore_eos=True, **params)  # type: ignore[arg-type]
    plain = engine.generate([prompt], chosen)[0]
    for speculate in (False, True):
        options = KnnOptions(4, 0.0, speculate=speculate)
        found = generate(engine, prompt, chosen, KnnRequest(ExactSearch(store), options))
        assert found.token_ids == plain.token_ids
        assert found.text == plain.text


SAMPLED = {"temperature": 0.9, "seed": 5}
CUT = {"temperature": 1.2, "top_k": 20, "top_p": 0.9, "seed": 1}


@pytest.mark.parametrize(
    ("params", "stride", "approximate"),  # every two values of two of them together
    [
        ({}, None, False),
        ({}, 3, True),
        ({}, 8, False),
        (SAMPLED, None, True),
        (SAMPLED, 3, False),
        (SAMPLED, 8, True),
        (CUT, None, False),
        (CUT, 3, True),
        (CUT, 8, True),
    ],
)
def test_knn_speculation_changes_no_token(
    engine: AsyncEngine,
    store: Datastore,
    prompt: list[int],
    params: dict[str, float],
    stride: int | None,
    approximate: bool,
) -> None:
    search: Search = ListSearch(store, 4) if approximate else ExactSearch(store)
    chosen = SamplingParams(max_tokens=48, ignore_eos=True, **params)  # type: ignore[arg-type]
    one, other = (
        generate(
            engine,
            prompt,
            chosen,
            KnnRequest(search, KnnOptions(8, 0.5, 2.0, speculate, stride if speculate else None)),
        )
        for speculate in (False, True)
    )
    assert other.token_ids == one.token_ids
    assert other.text == one.text
    figures = other.stats["knn"]
    assert figures["tokens"] == 48
    assert figures["lookups"] >= 48
    if stride is not None:
        assert figures["rounds"] < 48
    alone = engine.generate([prompt], chosen)[0]
    assert alone.token_ids != one.token_ids  # the neighbours do speak


def test_a_stop_string_ends_a_knn_answer(engine: AsyncEngine, store: Datastore, prompt: list[int]) -> None:
    options = KnnOptions(4, 0.9, 2.0, stride=8)
    whole = generate(engine, prompt, SamplingParams(max_tokens=30), KnnRequest(ExactSearch(store), options))
    stop = whole.text[5:8]
    cut = generate(engine, prompt, SamplingParams(max_tokens=30, stop=(stop,)), KnnRequest(ExactSearch(store), options))
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)]


def test_a_knn_prompt_that_is_too_long_is_refused(engine: AsyncEngine, store: Datastore) -> None:
    request = KnnRequest(ExactSearch(store), KnnOptions())
    with pytest.raises(PromptTooLong):
        generate(engine, [1] * engine.window, SamplingParams(max_tokens=1), request)


def test_a_datastore_in_pieces_is_the_same(engine: AsyncEngine, store: Datastore, tmp_path: Path) -> None:
    """A build whose time is up after every window, and that is begun again, ends in the same files."""
    while True:
        builder = StoreBuilder(tmp_path / "s", identity(engine.engine.loaded))
        before = builder.entries
        if build(engine, TEXTS, builder, until=0.0 if before else time.monotonic()):
            break
        builder.close()
        builder = StoreBuilder(tmp_path / "s", identity(engine.engine.loaded))
        build(engine, TEXTS, builder, entries=builder.entries + 1)
        builder.commit()
        builder.close()
    again = Datastore.open(builder.finish(lists=12))
    np.testing.assert_array_equal(again.keys, store.keys)
    np.testing.assert_array_equal(again.values, store.values)


def test_datastores_follow_the_documents(home: Path, engine: AsyncEngine) -> None:
    of_model = identity(engine.engine.loaded)
    options = KnnOptions()
    with Library.open(home) as library:
        stores = Datastores(library)
        with pytest.raises(NotFound, match="index build --knn"):
            stores._find(of_model, "local", None, options)
        report = stores.build(engine, "local", None)
        assert (report.built, report.documents, report.lists) == (True, 2, 0)
        assert not stores.build(engine, "local", None).built
        found = stores._find(of_model, "local", None, options)
        assert found.documents_behind == 0
        assert len(found.search.store) == report.entries
        with pytest.raises(NotFound):
            stores._find(of_model, "somebody", None, options)

        (home.parent / "new.txt").write_text("A new document about a ferry. " * 20)
        library.ingest([home.parent / "new.txt"])
        assert stores._find(of_model, "local", None, options).documents_behind == 1

        before = found.search(found.search.store.floats(np.array([3])), 2)
        library.delete(found.search.store.documents[0][0])
        with pytest.raises(DatastoreMismatch, match="deleted or changed"):
            stores._find(of_model, "local", None, options)
        again = stores.build(engine, "local", None)
        assert again.built
        assert [path.name for path in (home / "knn").glob("[!.]*")] == [again.name]
        # an answer under way finishes on the datastore that it began with
        after = found.search(found.search.store.floats(np.array([3])), 2)
        np.testing.assert_array_equal(before.entries, after.entries)


def test_ask_with_a_datastore(folio: Folio, home: Path, tiny_model: Path) -> None:
    where = ("--home", home)
    question = ("ask", "Who built the bridge?", "-m", tiny_model, "--mode", "retrieval", "--max-tokens", 24, "--json")
    code, _, error = folio(*where, *question, "--knn")
    assert code == 1
    assert "folio index build --knn" in error
    code, _, error = folio(*where, "index", "build", "--knn", "-m", "embedded")
    assert code != 0
    assert "embedded reader quotes" in error
    code, out, _ = folio(*where, "index", "build", "--knn", "-m", tiny_model, "--json")
    assert code == 0
    assert json.loads(out)["knn"]["entries"] > 200
    answers = {}
    for speculate in ("on", "off"):
        code, out, error = folio(*where, *question, "--knn", "--knn-weight", 0.6, "--speculate", speculate)
        assert code == 0, error
        answers[speculate] = json.loads(out)
    assert answers["on"]["answer"] == answers["off"]["answer"]
    assert answers["on"]["stats"]["knn"]["speculate"] is True
    assert answers["off"]["stats"]["knn"]["rounds"] == 24
    for flag, value in (("--knn-k", 0), ("--knn-weight", 1.5), ("--knn-temperature", 0), ("--knn-probes", 0)):
        code, _, error = folio(*where, *question, "--knn", flag, value)
        assert code == 2
        assert "must be" in error
    code, _, error = folio(*where, *question, "--knn", "--knn-probes", 3)
    assert code == 2
    assert "no lists" in error


def test_a_knn_answer_runs_beside_others(engine: AsyncEngine, store: Datastore, prompt: list[int]) -> None:
    """Rows of a kNN request in the steps of others change neither."""
    params = SamplingParams(max_tokens=32, ignore_eos=True)
    request = KnnRequest(ExactSearch(store), KnnOptions(8, 0.5, 2.0))
    alone = generate(engine, prompt, params, request).token_ids
    plain = engine.generate([prompt], params)[0].token_ids

    async def tokens(mixture: KnnRequest | None) -> list[int]:
        outputs = engine.stream(prompt, params, mixture=mixture)
        return [token async for output in outputs for token in output.token_ids]

    async def three() -> list[list[int]]:
        return await asyncio.gather(tokens(request), tokens(None), tokens(request))

    assert asyncio.run(three()) == [alone, plain, alone]
