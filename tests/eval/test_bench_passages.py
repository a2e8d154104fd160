"""`folio bench passages` and `folio bench rapid`: small models, made questions, and what the rows say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.bench.attention import passages
from eval.bench.attention.passages import Asked, Way
from eval.bench.drafting import rapid
from eval.bench.retrieval import knowledge_base
from eval.errors import EvalError
from service.engine.kv.passage_store import PassageStore
from service.errors import InvalidRequest


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, random_llama, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("bytes")
    tokenizer.save_pretrained(folder)
    random_llama(vocab_size=256, max_position_embeddings=4096, eos_token_id=0, bos_token_id=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve paragraphs of about 200 bytes in SQuAD's format, two questions each."""
    paragraphs = []
    for n in range(12):
        context = f"The mill of parish {n} was built by the family Aldous{n} beside the river. " * 3
        answer = {"text": f"Aldous{n}", "answer_start": context.index(f"Aldous{n}")}
        asked = [f"Who built the mill of parish {n}?", f"Which family lived at mill {n}?"]
        qas = [{"id": f"{n}.{i}", "question": one, "answers": [answer]} for i, one in enumerate(asked)]
        paragraphs.append({"context": context, "qas": qas})
    path = tmp_path_factory.mktemp("questions") / "mills.en.json"
    path.write_text(json.dumps({"data": [{"title": "Mills", "paragraphs": paragraphs}]}))
    return path


@pytest.mark.slow
def test_policies_and_stores_take_turns_beside_exact_answers(
    checkpoint: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passages, "default_folders", list)
    (tmp_path / "other.txt").write_text("Words of another book. " * 500)
    options = passages.Options(
        data=questions,
        model=str(checkpoint),
        policies=("blend:first=4", "blend:first=600"),
        questions=4,
        passages=2,
        library=8,
        least_tokens=400,
        most_tokens=3000,
        text=(tmp_path,),
        on_disk=10,
        canary=True,
        new_tokens=6,
        threads=1,
    )
    figures = passages.run(options)
    assert figures["library"] == 8
    assert [(row["policy"], row["kept"]) for row in figures["rows"]] == [
        ("dense", ""),
        ("blend:first=4", "auto"),
        ("blend:first=4", "int8"),
        ("blend:first=600", "auto"),
        ("blend:first=600", "int8"),
    ]
    exact, blended, _, *whole = figures["rows"]
    assert blended["first_token_with_reading_ms"] > blended["first_token_ms"]
    assert exact["computed"] == exact["same_ids"] == exact["agreeing"] == 1
    assert exact["f1_points"] == 0
    assert blended["computed"] < 0.5
    assert blended["agreeing"] <= blended["chosen"] <= 1
    assert exact["chosen"] is None
    for row in whole:  # nothing is copied
        assert row["computed"] == row["same_ids"] == 1
    sizes = {row["kept"]: row["bytes_per_token"] for row in figures["stored"]}
    assert sizes["int8"] < sizes["auto"] / 2
    for row in figures["disk"]:
        assert row["passages"] == 10
        assert 0 < row["known_s"] < row["asked_s"] <= row["all_s"]
        assert row["asked"] <= 10
    with pytest.raises(EvalError, match="passages can be made of the texts, 9,999 are wanted"):
        passages.run(passages.Options(**{**vars(options), "library": 9999}))


def test_a_row_is_of_pairs() -> None:
    def asked(ids: list[int], first: float, f1: float, reading: float | None = None) -> Asked:
        return Asked(ids, first, first + 1, f1, reading, 0.25)

    exact = [asked([1, 2, 3, 4], 2.0, 0.5), asked([5, 6], 4.0, 1.0), asked([7], 6.0, 0.0)]
    other = [asked([1, 2, 9, 4], 0.5, 0.25), asked([5, 6], 1.0, 1.0, 9.0), asked([7], 1.5, 0.25)]
    row = passages._row(Way("blend", "auto", PassageStore(0)), other, exact)
    assert row["first_token_ms"] == 1000
    assert row["first_token_with_reading_ms"] == 9000
    assert row["speedup"] == 4
    assert row["same_ids"] == pytest.approx(2 / 3)
    assert row["agreeing"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert row["f1_points"] == 0
    assert row["f1_points_error"] == pytest.approx(25 / 3**0.5)


def test_a_library_without_fitting_passages_is_refused(checkpoint: Path, questions: Path) -> None:
    options = passages.Options(data=questions, model=str(checkpoint), least_tokens=9000, most_tokens=9999)
    with pytest.raises(EvalError, match=r"no paragraphs of mills\.en\.json make a passage of 9000 to 9999 tokens"):
        passages.run(options)
    assert knowledge_base.default_folders()


@pytest.mark.slow
def test_readers_and_etas_take_turns_beside_plain_decoding(checkpoint: Path, questions: Path) -> None:
    figures = rapid.run(
        rapid.Options(
            data=questions,
            model=str(checkpoint),
            draft_model=str(checkpoint),
            eta=(0.0, 1000.0),
            threads=1,
            questions=2,
            context=1500,
            chunks=400,
            new_tokens=12,
        )
    )
    rows = {row["way"]: row for row in figures["rows"]}
    assert list(rows) == [
        "none",
        "rag:model=self",
        "rag:model=self,target_mix=1000",
        "rag:model=draft_model",
        "rag:model=draft_model,target_mix=1000",
    ]
    assert rows["rag:model=self"]["same_ids"] == rows["rag:model=draft_model"]["same_ids"] == 1
    assert rows["none"]["speedup"] == 1
    mixed = [rows[f"rag:model={reader},target_mix=1000"] for reader in ("self", "draft_model")]
    assert mixed[0]["f1"] == mixed[1]["f1"]
    assert mixed[0]["same_ids"] == mixed[1]["same_ids"] < 1


def test_a_way_that_the_engine_refuses_says_why(
    checkpoint: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = rapid._ask

    def refuse(engine: Any, prompt: Any, way: str, *others: Any) -> rapid.Asked:
        if "target_mix" in way:
            raise InvalidRequest("other tokens")
        return ask(engine, prompt, way, *others)

    monkeypatch.setattr(rapid, "_ask", refuse)
    options = rapid.Options(
        data=questions, model=str(checkpoint), eta=(50.0,), questions=2, context=1200, new_tokens=4, threads=1
    )
    plain, mixed = rapid.run(options)["rows"]
    assert mixed == {"way": "rag:model=self,target_mix=50", "refused": "other tokens"}
    assert plain["tokens_per_s"] > 0
