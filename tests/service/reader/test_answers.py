"""The embedded reader from the question to the checked citation: what it says is stored text, or the refusal."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from folio import LLM, Library, SamplingParams, ask
from retrieval.errors import UnknownRanker
from service.answering.answer import Answer
from service.answering.question import Knn
from service.errors import InvalidRequest
from service.reader.tokenizer import NOT_STATED

TEXT = (
    "The harbour was built of granite from the islands.\n\nThe lamp on the northern mole was first lit in 1871 by the "
    "keeper's daughter. It burns oil of colza, because gas was too dear.\n\nNobody may fish from the moles after dark."
)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(kv_memory=64 << 20) as opened:
        yield opened


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    folder = tmp_path_factory.mktemp("answers")
    (folder / "harbour.txt").write_text(TEXT)
    with Library.open(folder / "home") as opened:
        opened.ingest([folder / "harbour.txt"])
        yield opened


def answer(library: Library, llm: LLM, question: str, mode: str) -> Answer:
    return ask(question, library=library, llm=llm, mode=mode)


@pytest.mark.parametrize("mode", ["retrieval", "long"])
def test_a_stored_sentence_is_quoted_whole_and_verified(library: Library, llm: LLM, mode: str) -> None:
    found = answer(library, llm, "When was the lamp on the mole first lit?", mode)
    assert found.answer == "The lamp on the northern mole was first lit in 1871 by the keeper's daughter."
    (citation,) = found.citations
    assert citation["verified"]
    assert citation["cited_text"] == found.answer == TEXT[citation["start"] : citation["end"]]
    assert found.finish_reason == "stop"


@pytest.mark.parametrize("mode", ["retrieval", "long"])
def test_what_is_not_stored_is_refused(library: Library, llm: LLM, mode: str) -> None:
    found = answer(library, llm, "What does a ticket to the opera in Vienna cost?", mode)
    assert found.answer == NOT_STATED
    assert found.citations == []


@pytest.mark.parametrize("how", [{"mode": "iterative"}, {"knn": Knn()}, {"mode": "long", "knn": Knn()}])
def test_what_acts_on_every_word_is_refused_with_the_remedy(library: Library, llm: LLM, how: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="embedded reader quotes") as refused:
        ask("When was the lamp on the mole first lit?", library=library, llm=llm, **how)
    assert refused.value.param == ("mode" if how.get("mode") == "iterative" else "knn")
    assert "FOLIO_MODEL=smollm2" in str(refused.value.hint)


def test_a_guess_that_is_certain_is_taken_whole(library: Library, llm: LLM) -> None:
    asked = "When was the lamp on the mole first lit?"
    found = ask(asked, library=library, llm=llm, mode="retrieval", params=SamplingParams(drafter="suffix"))
    assert found.stats["accepted_length"] > 3


def test_an_answer_that_is_cut_off_cites_no_whole_sentence(library: Library, llm: LLM) -> None:
    asked = "When was the lamp on the mole first lit?"
    found = ask(asked, library=library, llm=llm, mode="retrieval", params=SamplingParams(max_tokens=6))
    assert found.finish_reason == "length"
    assert "The lamp on the northern mole was first lit in 1871".startswith(found.answer[:20])
    assert all(c["cited_text"] in TEXT for c in found.citations)


def test_reranking_keeps_the_passages_and_says_how_probable_they_are(library: Library) -> None:
    plain = library.search("When was the lamp lit?", 3)
    again = library.search("When was the lamp lit?", 3, rerank=True)
    assert {hit.chunk_id for hit in again.hits} == {hit.chunk_id for hit in plain.hits}
    assert all(0 < hit.score < 1 for hit in again.hits)
    assert again.generation == plain.generation


def test_a_ranker_that_is_not_there_is_refused_before_the_library_opens(tmp_path: Path) -> None:
    with pytest.raises(UnknownRanker, match="no folder"):
        Library.open(tmp_path / "home", ranker=str(tmp_path / "none"))
    assert not (tmp_path / "home").exists() or not any((tmp_path / "home").iterdir())
