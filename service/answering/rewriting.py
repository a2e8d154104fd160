"""A follow-up put into a question that stands alone by the model itself, where it was measured to do that well."""

from __future__ import annotations

from collections.abc import Sequence

from service.answering.prompting import ChatLayout
from service.answering.question import Question
from service.engine.params import SamplingParams

INSTRUCTIONS = (
    "You rewrite the last question of a conversation so that it can be understood without the conversation: put in "
    "the names that its pronouns stand for and the words that it leaves out. Do not answer it. A question that can be "
    "understood already stays as it is. Reply with the question alone."
)
EXAMPLES = (
    (
        ("How tall is the Eiffel Tower?", "It is 330 metres tall."),
        "And who built it?",
        "Who built the Eiffel Tower?",
    ),
    (
        ("Who wrote the report on the harbour?", "Maria Jensen wrote it."),
        "In which year was she born?",
        "In which year was Maria Jensen born?",
    ),
    (
        ("What does the lease say about pets?", "Pets are not allowed."),
        "How many rooms does the cottage at Lund have?",
        "How many rooms does the cottage at Lund have?",
    ),
)
MOST_TOKENS = 64
MOST_TURNS = 4
TURN_CHARS = 600
MOST_CHARS = 400
"""Of a question: what is longer is no question."""


def rewriting_params() -> SamplingParams:
    """Greedy, and no longer than a question."""
    return SamplingParams(max_tokens=MOST_TOKENS)


def rewriting_ids(layout: ChatLayout, question: Question) -> list[int]:
    """The prompt that asks for the question that stands alone; turns are data in it."""
    turns: list[tuple[str, list[str]]] = [("system", [INSTRUCTIONS])]
    for (asked, answered), follow_up, whole in EXAMPLES:
        turns += [("user", [_told([("user", asked), ("assistant", answered)], follow_up)]), ("assistant", [whole])]
    history = [(turn.role, turn.content) for turn in question.history[-MOST_TURNS:]]
    turns.append(("user", [_told(history, question.text)]))
    return layout.encode_turns(turns)


def rewritten(reply: str) -> str | None:
    """The question of the model's reply; None where it gave none."""
    line = next((line.strip() for line in reply.splitlines() if line.strip()), "")
    line = line.removeprefix("Rewritten question:").strip().strip('"“”')
    return line if 0 < len(line) <= MOST_CHARS else None


def _told(history: Sequence[tuple[str, str]], question: str) -> str:
    names = {"user": "User", "assistant": "Assistant"}
    said = [f"{names[role]}: {' '.join(text.split())[:TURN_CHARS]}" for role, text in history]
    return "\n".join([*said, f"Last question: {' '.join(question.split())}"])
