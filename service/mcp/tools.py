"""What a model may do with the library: search, ask, read a passage, list documents."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from service.accounts.keys import Principal
from service.answering.answer import collect
from service.answering.passages import hit_data
from service.answering.question import Question, Sampling
from service.errors import Forbidden
from service.fields import refusal
from service.runtime import Runtime

MOST_CHARS = 20_000
"""Of a passage read at once: about 5,000 tokens."""
CALLER: ContextVar[Principal] = ContextVar("caller")
"""On whose behalf tools run; unset on stdio, where it is the library's own owner."""

Collection = Annotated[str | None, Field(description="Name of a collection; null for all documents.", max_length=255)]
DocumentName = Annotated[
    str, Field(description="Id of a document, as list_documents and search give it.", max_length=64)
]
Place = Annotated[int, Field(ge=0, description="Offset in characters.")]


class LibraryTools:
    """The tools over one runtime. Each raises FolioError for what it refuses."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def search(
        self,
        query: Annotated[str, Field(min_length=1, max_length=20_000, description="What to look for.")],
        limit: Annotated[int, Field(ge=1, le=50, description="Most passages.")] = 8,
        documents: Annotated[list[str] | None, Field(max_length=100, description="Ids; null for all.")] = None,
        collection: Collection = None,
    ) -> dict[str, Any]:
        """Find the passages of the user's documents that answer a query, the best first."""
        found = await asyncio.wrap_future(
            self._runtime.library.submit_search(
                query, k=limit, owner=self._owner(), collection=collection, documents=documents or None
            )
        )
        return {"passages": [hit_data(hit) for hit in found.hits], "note": found.note}

    async def ask(
        self,
        question: Annotated[str, Field(min_length=1, max_length=20_000, description="What is asked.")],
        documents: Annotated[list[str] | None, Field(max_length=100, description="Ids; null for all.")] = None,
        collection: Collection = None,
        mode: Annotated[
            Literal["auto", "long", "retrieval"], Field(description="long: read whole; retrieval: passages.")
        ] = "auto",
    ) -> dict[str, Any]:
        """Have a question answered from the user's documents, with citations that are checked against their text."""
        owner = self._owner()
        try:
            asked = Question.model_validate(
                {"question": question, "documents": documents or (), "collection": collection, "mode": mode}
            )
        except ValidationError as error:
            raise refusal(error, lambda place: str(place[0])) from error
        await self._runtime.ended.wait()  # the model may still be loading
        answerer = self._runtime.answerer
        params = Sampling().params(answerer.answer_tokens, self._runtime.engine.sampling_defaults)
        answer = await collect(answerer.answer(asked, params, owner))
        return {
            "answer": answer.answer,
            "verified": answer.verified,
            "refused": answer.refused,
            "note": answer.note,
            "claims": answer.claims,
            "citations": answer.citations,
        }

    async def read_passage(self, document: DocumentName, start: Place = 0, end: Place | None = None) -> dict[str, Any]:
        """Read the stored text of a document, from one offset to another; at most 20,000 characters at once."""
        return await asyncio.to_thread(self._read, document, start, end, self._owner())

    async def list_documents(
        self,
        collection: Collection = None,
        limit: Annotated[int, Field(ge=1, le=100, description="Most documents.")] = 50,
        after: Annotated[str | None, Field(description="The last id of the page before.", max_length=64)] = None,
    ) -> dict[str, Any]:
        """List the user's documents: ids, names, pages and lengths."""
        owner = self._owner()
        found = await asyncio.to_thread(
            self._runtime.library.documents, collection, owner, limit=limit + 1, after=after
        )
        shown = [
            {
                "document": one.id,
                "name": one.name,
                "collection": one.collection,
                "pages": one.pages,
                "chars": one.chars,
                "readable": one.readable,
                "error": one.error,
            }
            for one in found[:limit]
        ]
        return {"documents": shown, "more": len(found) > limit}

    def _read(self, document: str, start: int, end: int | None, owner: str) -> dict[str, Any]:
        library = self._runtime.library
        whole = library.document(document, owner)
        start = min(start, whole.chars)
        end = max(start, min(whole.chars if end is None else end, start + MOST_CHARS, whole.chars))
        return {
            "document": whole.id,
            "name": whole.name,
            "start": start,
            "end": end,
            "chars": whole.chars,
            "page": library.page_of(document, start, owner),
            "text": library.text(document, owner=owner, start=start, end=end),
        }

    def _owner(self) -> str:
        """Whose documents are seen. Raises Forbidden: the key may not read."""
        caller = CALLER.get(None) or Principal()
        if not caller.may("read"):
            raise Forbidden("This key has no scope 'read'.")
        return caller.owner
