"""The words in which general models are asked about documents, one style a class of model.

They were compared on real models by ``folio eval prompts``: docs/prompts.md has the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.answering.passages import Passage, canonical
from service.answering.prompting.delimiters import codes, markers, pieces, ruled

SMALL_PARAMETERS = 1_000_000_000
"""A model of at most so many is a small one."""
NOT_STATED = "The documents do not say."
REPEATED = "sentences of these passages that may answer the question"


@dataclass(frozen=True)
class Example:
    """A question, a passage and the answer that is wanted, shown as an earlier turn."""

    passage: str
    question: str
    answer: str


@dataclass(frozen=True)
class Style:
    """The words around passages and question.

    Attributes:
        name: in statistics.
        system: the system's turn; "" for none, then a template may say its own.
        before: in front of the passages; ``{question}`` stands for the question, and then nothing is shared between
            the prompts of different questions.
        after: behind them, with ``{question}``.
        block: how a passage is delimited.
        marked: passages are named by markers, which `before` or `after` asks for.
        examples: shown in front of everything else.
        passages: how many retrieved ones are best; None for as many as the settings say.
        likely: how many of the sentences that the ranker finds likeliest to answer are repeated before the question.
        best_last: the best passage stands beside the question; else the order depends on the passages alone.
    """

    name: str
    system: str
    after: str
    before: str = ""
    block: Callable[..., str] = ruled
    marked: bool = False
    examples: tuple[Example, ...] = ()
    passages: int | None = None
    likely: int = 0
    best_last: bool = False

    def ordered(self, passages: Sequence[Passage]) -> list[Passage]:
        """Passages, given from the best to the worst, in the order of the prompt; overlapping ones are joined."""
        joined = canonical(passages)
        if not self.best_last:
            return joined
        return sorted(joined, key=lambda one: -min(i for i, other in enumerate(passages) if _holds(one, other)))

    def opening(
        self, question: str, passages: Sequence[Passage], likely: Sequence[str] = (), instructions: str = ""
    ) -> tuple[list[str], list[str]]:
        """What the first user turn begins with, in pieces: what stands before the passages, and three of each of these
        (`pieces`).

        Then what the last one begins with: the likeliest sentences, repeated beside the question.
        """
        before = self.before.replace("{question}", question.strip())
        text = "\n".join(likely[: self.likely])
        repeated = [Passage("", REPEATED, 0, len(text), None, text)] if text else []
        blocks = self.blocks([*passages, *repeated], instructions)
        cut = [piece for block, passage in zip(blocks, passages, strict=False) for piece in pieces(block, passage)]
        return [*([before] if before else []), *cut], blocks[len(passages) :]

    def asked(self, question: str) -> str:
        """A question in the words of the style."""
        return self.after.replace("{question}", question.strip())

    def blocks(self, passages: Sequence[Passage], beside: str = "") -> list[str]:
        """Each passage between its delimiters, which the text `beside` them does not hold either."""
        named = self.markers(passages) or [""] * len(passages)
        each = zip(passages, range(1, len(passages) + 1), codes(passages, beside), named, strict=True)
        return [self.block(*one) for one in each]

    def markers(self, passages: Sequence[Passage]) -> tuple[str, ...]:
        """By what an answer names the passages; () where it is not asked to."""
        return tuple(markers(passages)) if self.marked else ()

    def shown(self) -> list[tuple[str, list[str]]]:
        """The examples as turns of a conversation: role and pieces."""
        turns: list[tuple[str, list[str]]] = []
        for number, example in enumerate(self.examples, start=1):
            passage = Passage("", f"example {number}", 0, len(example.passage), None, example.passage)
            asked = [*self.opening(example.question, [passage])[0], self.asked(example.question)]
            turns += [("user", asked), ("assistant", [example.answer])]
        return turns


LARGE = Style(
    name="chat",
    system="You answer questions about documents.",
    after=(
        "Question: {question}\nAnswer in one short sentence, only from the passages above. If they do not contain the "
        f"answer, say: {NOT_STATED}"
    ),
    passages=3,
    likely=3,
)
SMALL = Style(
    name="chat-small",
    system="You answer questions about documents.",
    after="Question: {question}\nAnswer the question in one short sentence.",
    passages=3,
    likely=3,
)
"""Asked to refuse, a small model refuses what it could answer: here the ranker alone decides."""
PLAIN = Style(name="plain", system=LARGE.system, after="Question: {question}\nAnswer:")
"""Of base models, as running text; not measured."""


def style_for(parameters: int | None) -> Style:
    """The style of a model of so many parameters; None where that is not known."""
    return SMALL if parameters is not None and parameters <= SMALL_PARAMETERS else LARGE


def _holds(joined: Passage, part: Passage) -> bool:
    return joined.document == part.document and joined.start <= part.start and part.end <= joined.end
