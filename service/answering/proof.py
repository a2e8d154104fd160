"""What stands behind "not in the documents": what was read whole, what was searched for, and why nothing carried.

Made after the answer, and only for a refusal: it costs nobody else anything.
"""

from __future__ import annotations

from typing import Any

import structlog

from retrieval.errors import RetrievalError
from retrieval.types import Hit
from service.answering.evidence import Evidence, EvidenceFinder
from service.answering.question import Question
from service.answering.sureness import likely

log = structlog.get_logger(__name__)

SHOWN = 5
"""best passages in a proof"""
_READ = "the model read it and found no answer in it"


def proof_of(finder: EvidenceFinder, question: Question, evidence: Evidence, owner: str) -> dict[str, Any]:
    """The proof as JSON: ``read_whole``, ``searches``, ``considered`` and ``wider``. Blocks; for threads."""
    query = evidence.query or question.query
    whole = evidence.mode == "long"
    try:
        hits, mode = finder.nearest(question, evidence, owner)
    except RetrievalError as error:
        log.warning("a refusal has no passages to show", cause=str(error))
        hits, mode = [], ""
    return {
        "read_whole": [_document(result) for result in evidence.results] if whole else [],
        "searches": [{"query": query, "mode": mode, "passages": len(hits)}] if mode else [],
        "considered": _considered(finder, question, evidence, query, hits[:SHOWN]),
        "wider": wider(question, evidence),
    }


def wider(question: Question, evidence: Evidence) -> dict[str, Any] | None:
    """What of the question is to be asked otherwise for a wider search; None where there is nothing wider."""
    if evidence.mode != "long" and not question.wider:
        return {"mode": "retrieval", "wider": True}
    if question.documents or question.collection is not None:
        return {"mode": "retrieval", "wider": True, "documents": [], "collection": None}
    return None


def _considered(
    finder: EvidenceFinder, question: Question, evidence: Evidence, query: str, hits: list[Hit]
) -> list[dict[str, Any]]:
    """Passages, each with its surest sentence where the ranker reads the language, and why it did not carry."""
    ranker = finder.library.ranker
    reads = finder.layout.quotes or ranker.knows(query, *(hit.text for hit in hits))
    judged = likely(ranker, query, hits) if hits and reads else []
    surest = {one.hit: one for one in reversed(judged)}
    bound = question.refuse_below if question.refuse_below is not None else ranker.refuse_below(query, len(judged))
    asked = evidence.prompt is not None and not finder.layout.quotes
    found = []
    for number, hit in enumerate(hits):
        one = surest.get(number)
        if one is not None and one.probability < bound:
            why = f"its surest sentence answers with a probability of {one.probability:.2f}; {bound:.2f} is needed"
        elif asked:
            why = _READ
        else:
            why = "other sentences came before it, and they do not answer either"
        found.append(
            {
                "document": hit.document,
                "name": hit.name,
                "start": hit.start,
                "end": hit.end,
                "page": hit.page,
                "place": hit.place,
                "score": hit.score,
                "sentence": one.text if one is not None else " ".join(hit.text.split())[:200],
                "probability": one.probability if one is not None else None,
                "needed": bound if one is not None else None,
                "why": why,
            }
        )
    return sorted(found, key=lambda entry: -(entry["probability"] or 0.0))


def _document(result: dict[str, Any]) -> dict[str, Any]:
    return {"document": result["document"], "name": result["name"], "chars": result["end"] - result["start"]}
