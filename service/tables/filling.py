"""Filling tables: document after document, all questions of one together, owners in turns.

The first question of a document reads it; the others find what was read in the prefix cache. A row is kept when all its
cells are there, so that whoever goes on with a table after a stop asks no row twice.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import structlog

from retrieval.errors import NotFound, RetrievalError
from service.answering.answer import Answer, Answerer, collect
from service.answering.question import Question, Sampling
from service.errors import Busy, FolioError, Unavailable, outward
from service.owner import in_the_name_of
from service.tables.columns import Column
from service.tables.store import Row, TableHead, TableStore
from service.turns import Turns

log = structlog.get_logger(__name__)

AT_ONCE = 4
"""questions of one document"""
LOOK_S = 2.0
"""between looks for tables of other processes"""
PATIENCE = 30
"""tries of a question where the queue is full"""
UNFORESEEN = "Something went wrong here; the log says what."


class TableFiller:
    """Fills tables with one answerer. Of one event loop."""

    def __init__(self, store: TableStore, answerer: Answerer) -> None:
        self.holder = secrets.token_hex(8)
        self._store = store
        self._answerer = answerer
        self._turns = Turns()
        self._wake = asyncio.Event()
        self._filling: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """There may be a table to fill."""
        self._wake.set()

    async def serve(self) -> None:
        """Fill whatever is unfinished, until cancelled."""
        try:
            while True:
                self._wake.clear()
                try:
                    while (head := await asyncio.to_thread(self._store.claim, self.holder)) is not None:
                        task = asyncio.create_task(self.fill(head))
                        self._filling.add(task)
                        task.add_done_callback(self._filling.discard)
                except RetrievalError as error:  # the database is busy or gone; it may come back
                    log.warning("tables wait", cause=str(error))
                try:
                    await asyncio.wait_for(self._wake.wait(), LOOK_S)
                except TimeoutError:
                    continue
        finally:
            for task in list(self._filling):
                task.cancel()
            await asyncio.gather(*self._filling, return_exceptions=True)

    async def fill(self, head: TableHead, told: Callable[[], None] = lambda: None) -> None:
        """Answer the rows of a claimed table that have no answers yet.

        Args:
            told: called after each row.
        """
        try:
            with in_the_name_of(head.owner):
                while True:
                    async with self._turns.of(head.owner):
                        row = await asyncio.to_thread(self._store.next_row, head.id, self.holder)
                        if row is None:
                            return
                        await self._fill_row(head, row)
                    told()
        except FolioError as error:
            log.warning("a table is left for later", table=head.id, cause=error.detail)
        except Exception:
            log.exception("a table is left for later", table=head.id)
        finally:
            await asyncio.shield(asyncio.to_thread(self._store.finish, head.id, self.holder))

    async def _fill_row(self, head: TableHead, row: Row) -> None:
        """What nobody foresaw fails the row, which would else be asked for ever. Errors: Unavailable, retrieval's."""
        try:
            await self._answer_row(head, row)
        except (FolioError, RetrievalError):
            raise
        except Exception:
            log.exception("a row cannot be answered", table=head.id, row=row.ordinal)
            cells = [_failed(FolioError(UNFORESEEN))] * len(head.spec.columns)
            await asyncio.to_thread(self._store.keep, head.id, row.ordinal, row.version, cells)

    async def _answer_row(self, head: TableHead, row: Row) -> None:
        library = self._answerer.finder.library
        try:
            document = await asyncio.to_thread(library.document, row.document, head.owner)
        except NotFound:  # deleted a moment ago, and the row with it
            await asyncio.to_thread(self._store.keep, head.id, row.ordinal, row.version, [])
            return
        first, *others = head.spec.columns
        cells = [await self._cell(head, row, first)]
        places = asyncio.Semaphore(AT_ONCE)

        async def one(column: Column) -> dict[str, Any]:
            async with places:
                return await self._cell(head, row, column)

        cells += await asyncio.gather(*(one(column) for column in others))
        await asyncio.to_thread(self._store.keep, head.id, row.ordinal, document.version, cells)

    async def _cell(self, head: TableHead, row: Row, column: Column) -> dict[str, Any]:
        """Raises Unavailable: the service ends, and the row stays for later."""
        for attempt in range(PATIENCE):
            try:
                return await self._asked(head, row, column)
            except Unavailable:
                raise
            except Busy as error:
                if attempt == PATIENCE - 1:
                    return _failed(error)
                await asyncio.sleep(error.retry_after)
            except Exception as error:
                known = outward(error)
                if known is None:
                    log.exception("a cell cannot be answered", table=head.id, row=row.ordinal)
                    known = FolioError(UNFORESEEN)
                return _failed(known)
        raise AssertionError

    async def _asked(self, head: TableHead, row: Row, column: Column) -> dict[str, Any]:
        writes = not self._answerer.layout.quotes
        text = column.asked if writes else column.question
        question = Question(question=text, documents=(row.document,), mode=head.spec.mode)
        params = Sampling().params(self._answerer.answer_tokens, self._answerer.engine.sampling_defaults)
        if writes and column.constraint is not None:
            params = replace(params, constraint=column.constraint)
        events = self._answerer.answer(question.searched_as(column.question), params, head.owner)
        return cell_of(column, await collect(events), writes)


def cell_of(column: Column, answer: Answer, written: bool) -> dict[str, Any]:
    """The cell of an answer: its value where the document supports it, else a blank that says why.

    Args:
        written: by a model that was held to the column's type.
    """
    cited = [one for one in answer.citations if one["verified"]]
    value = None if answer.refused else column.read(answer.answer, written)
    supported = bool(cited) and (column.type != "text" or answer.verified)
    why = None
    if answer.refused or (value is None and answer.answer.startswith("not stated")):
        why = "the document does not say"
    elif value is None:
        why = f"no single {column.type} in the answer"
    elif not supported or not column.stands_in(value, [one["cited_text"] for one in cited]):
        why = "nothing in the document supports the answer"
    return {
        "value": value if why is None else None,
        "blank": why,
        "answer": answer.answer,
        "support": _support(cited) if why is None else "none",
        "mode": answer.mode,
        "citations": [
            {name: one[name] for name in ("start", "end", "page", "place", "cited_text", "support")} for one in cited
        ],
        "error": None,
    }


def _support(cited: list[dict[str, Any]]) -> str:
    return "verbatim" if all(one["support"] == "verbatim" for one in cited) else "attributed"


def _failed(error: FolioError) -> dict[str, Any]:
    return {
        "value": None,
        "blank": "the question failed",
        "answer": "",
        "support": "none",
        "mode": "",
        "citations": [],
        "error": error.detail,
    }
