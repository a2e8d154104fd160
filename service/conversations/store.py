"""Kept conversations in SQL.

A turn is what the page knows of a question and its answer. It names the documents that it was made of, and goes with
them, as do the turns that followed it and may repeat their words.
"""

from __future__ import annotations

import datetime as dt
import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from retrieval.store.database import Database
from retrieval.store.documents import cut_conversation
from retrieval.store.tables import conversation_turns, conversations, documents, now
from retrieval.store.usage import check_room, said_bytes
from service.errors import Conflict, InvalidRequest, TooLarge
from service.fields import DocumentId, Text
from service.owned import Owned

MOST_CONVERSATIONS = 500
"""of one owner"""
MOST_TURNS = 200
MOST_BYTES = 512 * 1024
"""of a turn, as JSON"""
MOST_KEPT_BYTES = 256 << 20
"""of all conversations of one owner: a delete of a document looks through them"""

Title = Annotated[Text, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]


class Source(BaseModel):
    """A passage that a turn names; what else is known of it stays with it."""

    model_config = ConfigDict(extra="allow")

    document: DocumentId
    name: Text = ""
    place: Text | None = ""
    cited_text: Text | None = ""


class Turn(BaseModel):
    """A question and its answer; whatever else the page knows of them stays with them."""

    model_config = ConfigDict(extra="allow")

    question: Text = Field(max_length=20_000)
    text: Text = Field(max_length=400_000, description="The answer.")
    citations: list[Source] = Field([], max_length=2000)
    results: list[Source] = Field([], max_length=2000)

    @model_validator(mode="after")
    def _is_json(self) -> Turn:
        try:
            size = len(json.dumps(self.model_dump(), ensure_ascii=False, allow_nan=False).encode())
        except (ValueError, RecursionError) as error:
            raise ValueError("it holds what JSON has no form for") from error
        if size > MOST_BYTES:
            raise ValueError(f"it has {size:,} bytes, over {MOST_BYTES:,}")
        return self

    @property
    def made_of(self) -> set[str]:
        """Ids of the documents that were read or cited."""
        return {one.document for one in [*self.citations, *self.results]}


@dataclass(frozen=True)
class Conversation:
    """A conversation without its turns."""

    id: str
    title: str
    turns: int
    created_at: dt.datetime
    updated_at: dt.datetime


class ConversationStore:
    """The conversations of one database. Blocks; for threads."""

    def __init__(self, database: Callable[[], Database]) -> None:
        self._database = database

    def create(self, owner: str, title: str) -> Conversation:
        """Raises TooLarge: the owner has too many."""
        number, at = secrets.token_hex(8), now()
        with self._database().write_aside() as connection:
            count = sa.select(sa.func.count()).where(conversations.c.owner == owner)
            if connection.execute(count).scalar_one() >= MOST_CONVERSATIONS:
                raise TooLarge(f"{MOST_CONVERSATIONS} conversations are kept, which is the limit.", hint="Delete some.")
            row = {"id": number, "owner": owner, "title": title, "created_at": at, "updated_at": at}
            connection.execute(sa.insert(conversations).values(row))
        return self.get(owner, number)

    def get(self, owner: str, conversation: str) -> Conversation:
        """Raises NotFound, as those below do: it is another owner's, deleted, or never was."""
        return Conversation(**_CONVERSATIONS.one(self._database(), owner, conversation)._mapping)

    def all(self, owner: str) -> list[Conversation]:
        """The owner's, the newest first."""
        query = _ALL.where(conversations.c.owner == owner)
        with self._database().read() as connection:
            rows = connection.execute(query.order_by(conversations.c.updated_at.desc(), conversations.c.id))
            return [Conversation(**row._mapping) for row in rows]

    def turns(self, owner: str, conversation: str) -> list[dict[str, Any]]:
        """In order, as they were kept."""
        return [json.loads(turn) for turn in self.written(owner, conversation)]

    def written(self, owner: str, conversation: str) -> Iterator[str]:
        """The JSON of each turn, one at a time, as it is stored."""
        count = self.get(owner, conversation).turns
        content = sa.select(sa.cast(conversation_turns.c.content, sa.Text))
        of_it = content.where(conversation_turns.c.conversation_id == conversation)

        def each() -> Iterator[str]:
            for ordinal in range(count):
                with self._database().read() as connection:
                    turn = connection.execute(of_it.where(conversation_turns.c.ordinal == ordinal)).scalar()
                if turn is not None:  # else deleted meanwhile
                    yield turn

        return each()

    def rename(self, owner: str, conversation: str, title: str) -> Conversation:
        self.get(owner, conversation)
        with self._database().write_aside() as connection:
            connection.execute(
                sa.update(conversations).where(*_CONVERSATIONS.mine(owner, conversation)).values(title=title)
            )
        return self.get(owner, conversation)

    def keep(
        self, owner: str, conversation: str, ordinal: int, turn: Turn, most_bytes: float | None = None
    ) -> Conversation:
        """Keep a turn in its place; those behind it, which followed another, go.

        most_bytes: that the owner may have stored, this turn included.

        Raises InvalidRequest: a turn before it is missing. Conflict: a document that it is made of has been deleted.
        TooLarge, StorageFull (retrieval's): the owner keeps as much as he may.
        """
        of_it = conversation_turns.c.conversation_id == conversation
        with self._database().write() as connection:  # in turn with deletes, which must not be overtaken
            _CONVERSATIONS.check(connection, owner, conversation)
            there = connection.execute(
                sa.select(documents.c.id).where(documents.c.owner == owner, documents.c.id.in_(turn.made_of))
            ).scalars()
            if turn.made_of - set(there):
                raise Conflict("A document that this answer was made of is deleted: the answer is not kept.")
            cut_conversation(connection, conversation, ordinal)
            count = sa.select(sa.func.count()).select_from(conversation_turns).where(of_it)
            if connection.execute(count).scalar_one() < ordinal:
                raise InvalidRequest(f"There is no turn {ordinal - 1} that this one could follow.", param="turn")
            content = turn.model_dump(mode="json")
            size = len(json.dumps(content))
            if most_bytes is not None:
                check_room(connection, owner, size, most_bytes)
            row = {"conversation_id": conversation, "ordinal": ordinal, "content": content}
            connection.execute(sa.insert(conversation_turns).values(row))
            mine = sa.update(conversations).where(*_CONVERSATIONS.mine(owner, conversation))
            connection.execute(mine.values(size=conversations.c.size + size, updated_at=now()))
            if said_bytes(connection, owner, conversations) > MOST_KEPT_BYTES:
                most = MOST_KEPT_BYTES >> 20
                raise TooLarge(f"{most} MiB of conversations are kept, which is the limit.", hint="Delete some.")
        return self.get(owner, conversation)

    def delete(self, owner: str, conversation: str) -> None:
        """Forget a conversation."""
        self.get(owner, conversation)
        with self._database().write_aside() as connection:
            of_it = conversation_turns.c.conversation_id == conversation
            connection.execute(sa.delete(conversation_turns).where(of_it))
            connection.execute(sa.delete(conversations).where(*_CONVERSATIONS.mine(owner, conversation)))


_ALL = sa.select(
    conversations.c.id,
    conversations.c.title,
    conversations.c.created_at,
    conversations.c.updated_at,
    sa.select(sa.func.count())
    .select_from(conversation_turns)
    .where(conversation_turns.c.conversation_id == conversations.c.id)
    .scalar_subquery()
    .label("turns"),
)
_CONVERSATIONS = Owned("conversation", conversations, _ALL)
