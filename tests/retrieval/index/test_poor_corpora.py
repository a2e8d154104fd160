"""Every operation of the index over corpora with little in them: nothing, one document, no word, words of no use."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import WordEmbedder
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from retrieval.index.sparse import SparseIndex, SparseSegment, SparseStatistics
from retrieval.index.token_store import CorpusTokenizer, TokenStore
from retrieval.library import Library
from retrieval.types import Upload

POOR = ["?!", "… — …", "the of and", "the of the of", "A swan.", "zzyzx", "*\n\n*", "🦢", "𝒳", "word " * 300]
ASKED = ["?!", "the of", "swan", "swan of nowhere", "🦢", "word the swan ?"]
TOKENIZER = CorpusTokenizer("bytes", lambda text: list(text.encode()))


class AsciiEmbedder(WordEmbedder):
    """Reads no text without an ASCII letter."""

    def _vector(self, text: str) -> np.ndarray:
        return super()._vector(text) if readable(text) else np.zeros(self.dim, dtype=np.float32)


def readable(text: str) -> bool:
    return re.search("[a-z]", text.lower()) is not None


class PoorLibrary(RuleBasedStateMachine):
    """Documents come and go in any order, with and without builds between; what is live is always found."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._library = Library.open(Path(self._folder.name), embedder=AsciiEmbedder())
        self._texts: dict[str, str] = {}

    def teardown(self) -> None:
        self._library.close()
        self._folder.cleanup()

    @rule(text=st.sampled_from(POOR), name=st.integers(0, 3))
    def ingest(self, text: str, name: int) -> None:
        [result] = self._library.ingest([Upload(f"{name}.txt", f"{text}\n{name}".encode())])
        assert result.status == "ready", result.error
        assert result.id is not None
        self._texts[result.id] = f"{text}\n{name}"

    @rule(text=st.sampled_from(POOR[:3]), name=st.integers(4, 5))
    def ingest_without_a_number(self, text: str, name: int) -> None:
        [result] = self._library.ingest([Upload(f"{name}.txt", text.encode())])
        assert result.status == "ready", result.error
        assert result.id is not None
        self._texts[result.id] = text

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        if self._texts:
            document = data.draw(st.sampled_from(sorted(self._texts)))
            self._library.delete(document)
            del self._texts[document]

    @rule(operation=st.sampled_from(["build_index", "compact", "rebuild"]))
    def build(self, operation: str) -> None:
        report = getattr(self._library, operation)()
        assert report.chunks >= len(self._texts)
        if self._texts:
            assert self._library.stats().indexed_chunks == report.chunks

    @rule()
    def set_tokenizer(self) -> None:
        self._library.set_tokenizer(TOKENIZER)

    @rule(query=st.sampled_from(ASKED), k=st.sampled_from([1, 3, 1000]))
    def search(self, query: str, k: int) -> None:
        chunks = [chunk for document in self._texts for chunk in self._library.chunks(document)]
        read = sum(readable(chunk.text) for chunk in chunks)
        for mode in ("dense", "hybrid"):
            hits, _, said = self._library.search(query, k, mode=mode)
            assert bool(said) == (not readable(query))
            assert all(self._texts[hit.document][hit.start : hit.end] == hit.text for hit in hits)
            if readable(query):
                assert len(hits) in {min(k, read), min(k, len(chunks) if mode == "hybrid" else read)}
            else:
                assert hits == self._library.search(query, k, mode="sparse").hits
        found = {hit.document for hit in self._library.search(query, 1000, mode="sparse").hits}
        assert found <= set(self._texts)
        words = {word for word in query.split() if word in ("swan", "word")} or {"the", "of"} & set(query.split())
        assert found == {
            document for document, text in self._texts.items() if words & set(text.lower().replace(".", "").split())
        }

    @rule()
    def tokens(self) -> None:
        store = self._library.token_store()
        if store is not None:
            match, rows = store.continuations(list(b" the of"), 8, 1, 4, 3)
            assert (match == 0) == (len(rows) == 0)

    @invariant()
    def sound(self) -> None:
        assert self._library.verify_index().problems == []
        assert self._library.stats().notes == []


PoorLibrary.TestCase.settings = settings(
    max_examples=10, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
TestPoorLibrary = PoorLibrary.TestCase


@pytest.mark.parametrize("corpus", [[], [[]], [[], []], [["the"]], [["the"], ["the"]]])
def test_scores_of_a_poor_corpus(corpus: list[list[str]], tmp_path: Path) -> None:
    built = SparseIndex.build(corpus)
    built.save(tmp_path)
    for index in (built, SparseIndex.load(tmp_path)):
        assert len(index) == len(corpus)
        for query in ([], ["the"], ["unknown", "the"]):
            scores = index.scores(query)
            assert (scores > 0).tolist() == ["the" in query and "the" in document for document in corpus]
            rows = np.arange(len(corpus))
            np.testing.assert_array_equal(index.scores_of(query, rows), scores)
            statistics = SparseStatistics(query, index, [SparseSegment(corpus)])
            assert np.isfinite(statistics.average_length)
            segment = SparseSegment(corpus).scores(query, statistics.idf, statistics.average_length)
            assert (segment > 0).tolist() == (scores > 0).tolist()


@pytest.mark.parametrize("documents", [[], [[]], [[], []], [[1]]])
def test_a_token_store_of_next_to_nothing(documents: list[list[int]]) -> None:
    store = TokenStore.build(documents, "t")
    assert store.continuations([1, 2], 2, 1, 4, 3)[0] == 0
    seen = store.restricted(np.zeros(len(documents), dtype=bool))
    assert seen.continuations([1], 1, 1, 4, 3)[0] == 0
