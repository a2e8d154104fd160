"""A question in its conversation: what is searched for, what the model is asked, and the turns that it is given.

A search, and a model that cannot follow a conversation, need a question that stands alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from service.answering.follow_up import stand_alone
from service.answering.prompting import Prompt, PromptLayout
from service.answering.question import Question

LAST_EXCHANGE = 2
"""Turns without which a follow-up says nothing: the last question and its answer."""


def standalone(question: Question) -> str:
    """The question as it can be understood without the conversation before it."""
    return stand_alone(question.text, [(turn.role, turn.content) for turn in question.history])


def understood(question: Question, layout: PromptLayout) -> Question:
    """The question with its `query`; as one question without turns, for a layout that follows no conversation."""
    if not question.history:
        return question
    query = standalone(question)
    if layout.follows:
        return question.searched_as(query)
    return question.model_copy(update={"text": query, "history": ()})


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
