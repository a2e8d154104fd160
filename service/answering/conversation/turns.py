"""A question in its conversation: what is searched for, what the model is asked, and the turns that it is given.

A search, and a model that cannot follow a conversation, need a question that stands alone.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

from retrieval.types import DEFAULT_OWNER
from service.answering.conversation.follow_up import stand_alone
from service.answering.conversation.rewriting import rewriting_ids, rewriting_params, rewritten
from service.answering.prompting.layouts import ChatLayout, Prompt, PromptLayout
from service.answering.question import Question
from service.engine.async_engine import AsyncEngine
from service.settings import FollowUps

LAST_EXCHANGE = 2
"""Turns without which a follow-up says nothing: the last question and its answer."""


def standalone(question: Question) -> str:
    """The question as it can be understood without the conversation before it."""
    return stand_alone(question.text, [(turn.role, turn.content) for turn in question.history])


async def understood(
    question: Question,
    layout: PromptLayout,
    engine: AsyncEngine,
    by: FollowUps = "rule",
    owner: str = DEFAULT_OWNER,
) -> Question:
    """The question with its `query`; as one question without turns, for a layout that follows no conversation.

    Args:
        by: rule, or model: the one that answers, where it has a chat template and gives a question.
        owner: on whose behalf the model is asked.

    Raises FolioError: the model that was asked to rewrite it failed.
    """
    if not question.history:
        return question
    query = None
    if by == "model" and isinstance(layout, ChatLayout):
        query = await _by_model(question, owner, layout, engine)
    if query is None:
        query = await asyncio.to_thread(standalone, question)
    if layout.follows:
        return question.searched_as(query)
    return question.model_copy(update={"text": query, "history": ()})


async def _by_model(question: Question, owner: str, layout: ChatLayout, engine: AsyncEngine) -> str | None:
    ids = await asyncio.to_thread(rewriting_ids, layout, question)
    reply = ""
    async with aclosing(engine.stream(ids, replace(rewriting_params(), owner=owner))) as outputs:
        async for output in outputs:
            reply += output.text
    return rewritten(reply)


def fitted(
    question: Question, build: Callable[[Question], Prompt], room: int, least: int = 0
) -> tuple[Question, Prompt]:
    """The question without the oldest turns that `room` tokens do not hold, and its prompt.

    Args:
        least: newest turns that stay, though the prompt be too long.
    """
    prompt = build(question)
    if len(prompt.ids) <= room or len(question.history) <= least:
        return question, prompt
    last = len(question.history) - least
    cuts = [at for at, turn in enumerate(question.history[:last]) if at and turn.role == "user"] + [last]
    cut = bisect_left(cuts[:-1], True, key=lambda at: len(build(_since(question, at)).ids) <= room)
    shorter = _since(question, cuts[cut])
    return shorter, build(shorter)


def _since(question: Question, turn: int) -> Question:
    """The question with its history from this turn on."""
    return question.model_copy(update={"history": question.history[turn:]})
