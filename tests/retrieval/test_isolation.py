"""Whatever tenants do, no read path shows one of them anything of another."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from conftest import WordEmbedder
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from retrieval.errors import NotFound
from retrieval.index.token_store import CorpusTokenizer
from retrieval.library import Library
from retrieval.types import Mode, Upload

OWNERS = st.sampled_from(["ann", "bob", "eve"])
COLLECTIONS = st.sampled_from(["default", "other"])
NAMES = st.sampled_from(["a.txt", "b.md"])


class Tenants(RuleBasedStateMachine):
    """A library beside a dictionary: (owner, collection, name) → (document, secret word)."""

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.library = Library.open(Path(self.folder.name), embedder=WordEmbedder())
        self.library.set_tokenizer(CorpusTokenizer("bytes", lambda text: list(text.encode())))
        self.known: dict[tuple[str, str, str], tuple[str, str]] = {}
        self.count = 0

    def teardown(self) -> None:
        if hasattr(self, "library"):
            self.library.close()
            self.folder.cleanup()

    @rule(owner=OWNERS, collection=COLLECTIONS, name=NAMES)
    def ingest(self, owner: str, collection: str, name: str) -> None:
        self.count += 1
        secret = f"secret{self.count}x"
        data = f"The word is {secret} and belongs to {owner}.".encode()
        [result] = self.library.ingest([Upload(name, data)], collection, owner)
        assert result.id is not None
        self.known[owner, collection, name] = (result.id, secret)

    @rule(owner=OWNERS, collection=COLLECTIONS, name=NAMES)
    def same_content_for_all(self, owner: str, collection: str, name: str) -> None:
        """The same bytes in every tenant's hands: stored once as a file, never shared as a document."""
        [result] = self.library.ingest([Upload(name, b"Everybody has this shared text.")], collection, owner)
        assert result.id is not None
        if not result.deduplicated:
            self.known[owner, collection, name] = (result.id, "shared")

    @rule(owner=OWNERS, collection=COLLECTIONS, name=NAMES)
    def delete(self, owner: str, collection: str, name: str) -> None:
        found = self.known.pop((owner, collection, name), None)
        if found is not None:
            self.library.delete(found[0], owner)

    @rule()
    def build(self) -> None:
        self.library.build_index()

    @rule(thief=OWNERS, collection=COLLECTIONS, mode=st.sampled_from(["hybrid", "dense", "sparse"]))
    def steal(self, thief: str, collection: str, mode: Mode) -> None:
        mine = {key: value for key, value in self.known.items() if key[0] == thief}
        words = " ".join(secret for _, secret in self.known.values()) or "nothing"
        found = self.library.search(f"the word is {words}", k=50, owner=thief, mode=mode).hits
        assert {hit.document for hit in found} <= {document for document, _ in mine.values()}
        if mode == "dense":
            assert {hit.document for hit in found} == {document for document, _ in mine.values()}
        inside = {document for key, (document, _) in mine.items() if key[1] == collection}
        try:
            hits = self.library.search(words, k=50, owner=thief, mode=mode, collection=collection).hits
            assert {hit.document for hit in hits} <= inside
        except NotFound:
            assert not inside
        for (owner, _, _), (document, _) in self.known.items():
            if owner != thief:
                self._cannot_reach(thief, document)

    def _cannot_reach(self, thief: str, document: str) -> None:
        library = self.library
        for read in (
            library.document, library.text, library.pages, library.chunks, library.original, library.delete,
        ):  # fmt: skip
            with pytest.raises(NotFound):
                read(document, owner=thief)
        with pytest.raises(NotFound):
            library.page_of(document, 0, owner=thief)
        with pytest.raises(NotFound):
            library.place_of(document, 0, 1, owner=thief)
        with pytest.raises(NotFound):
            library.find(document, owner=thief)
        with pytest.raises(NotFound):
            library.boxes(document, 0, 1, owner=thief)
        with pytest.raises(NotFound):
            library.page_image(document, 1, owner=thief)
        with pytest.raises(NotFound):
            library.search("word", owner=thief, documents=[document])

    @invariant()
    def everybody_has_their_own(self) -> None:
        if not hasattr(self, "library"):
            return
        for owner in ("ann", "bob", "eve"):
            mine = {document: secret for key, (document, secret) in self.known.items() if key[0] == owner}
            assert {found.id for found in self.library.documents(owner=owner)} == set(mine)
            assert all(secret in self.library.text(document, owner=owner) for document, secret in mine.items())
            self._drafts_are_mine(owner, set(mine.values()))

    def _drafts_are_mine(self, owner: str, secrets: set[str]) -> None:
        store = self.library.token_store(owner)
        if store is not None:
            rows = store.continuations(list(b"The word is "), 12, 6, 50, 20)[1]
            drafted = [bytes(row[row >= 0].tolist()).decode().split()[0] for row in rows]
            assert set(drafted) <= secrets


TestTenants = Tenants.TestCase
TestTenants.settings = settings(max_examples=6, stateful_step_count=12, deadline=None)
