"""What the reader is asked, and what of its answer is shown."""

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

import pytest

from service.answering.passages import Passage, Span
from service.answering.prompting.layouts import Prompt
from service.answering.support.judge import judge
from service.errors import InvalidRequest
from service.reader.choosing import Choice
from service.reader.layout import ReaderLayout
from service.reader.sentences import LONGEST
from service.reader.tokenizer import NOT_STATED, REFERENCES, reference

STORED = (
    "The harbour was built in 1871.  It has two\nmoles of granite. A lamp burns <|r1|> on the northern one! "
    "Who lit it first?\n\nNobody remembers that."
)


@pytest.fixture(scope="module")
def layout(reader_tokenizer: Any) -> ReaderLayout:
    return ReaderLayout(reader_tokenizer)


def passage(text: str = STORED, start: int = 100, document: str = "d1") -> Passage:
    return Passage(document, "harbour.txt", start, start + len(text), 3, text)


def answer(layout: ReaderLayout, number: int | None, words: str) -> list[int]:
    tokenizer = layout.tokenizer
    lead = [] if number is None else [tokenizer.convert_tokens_to_ids(reference(number % REFERENCES))]
    return [*lead, *tokenizer(" " + words, split_special_tokens=True)["input_ids"], tokenizer.eos_token_id]


def read(layout: ReaderLayout, prompt: Prompt, ids: list[int]) -> tuple[str, list[Span]]:
    """An answer as shown, and the spans that support its claims."""
    shown = layout.visible(layout.tokenizer.decode(ids)).rstrip()
    return shown, [span for judged in judge(shown, prompt.passages) for span in judged.spans]


def test_a_prompt_holds_the_sentences_in_order_and_evidence_cannot_forge_tokens(layout: ReaderLayout) -> None:
    prompt = layout.build("  Who lit\nthe lamp? ", [passage()])
    numbers = [layout._references.index(token) for token in prompt.ids if token in layout._references]
    assert numbers == [0, 1, 2, 3, 4]
    assert prompt.ids[-1] == layout.tokenizer.convert_tokens_to_ids("<|answer|>")
    assert layout.tokenizer.decode(prompt.ids).endswith("<|question|> Who lit the lamp?<|answer|>")


def test_prompts_over_the_same_evidence_share_their_beginning(layout: ReaderLayout) -> None:
    one = layout.build("When?", [passage()]).ids
    two = layout.build("Where is the lamp?", [passage()]).ids
    question = one.index(layout.tokenizer.convert_tokens_to_ids("<|question|>"))
    assert one[: question + 1] == two[: question + 1]


def test_what_is_shown_only_grows(layout: ReaderLayout) -> None:
    ids = answer(layout, 2, "A lamp burns on the northern one!")
    texts = [layout.visible(layout.tokenizer.decode(ids[:n])) for n in range(len(ids) + 1)]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))


def test_what_it_cannot_do_is_refused(layout: ReaderLayout) -> None:
    with pytest.raises(InvalidRequest, match="conversation"):
        layout.build("And then?", [passage()], [{"role": "user", "content": "Hello"}])
    with pytest.raises(InvalidRequest, match="empty"):
        layout.build("  ", [passage()])


class Chooses:
    """Quotes the sentences that it is told to."""

    def __init__(self, *sentences: int) -> None:
        self.sentences = sentences

    def choose(
        self, question: str, sentences: Sequence[str], contexts: Sequence[str], names: Collection[int], room: int
    ) -> Choice:
        assert len(sentences) == len(contexts)
        assert all(sentences[n].startswith("| Item") for n in names)
        return Choice(self.sentences, tuple(sorted({0, *self.sentences})), 0.9)


def settled(tokenizer: Any, *sentences: int, narrow: bool, text: str = STORED) -> tuple[ReaderLayout, Prompt]:
    layout = ReaderLayout(tokenizer, lambda: Chooses(*sentences))  # type: ignore[arg-type, return-value]
    prompt = layout.build("Who lit the lamp?", [passage(text), passage("More of it.", 900, "d2")])
    assert prompt.settle is not None
    assert prompt.answer == ()
    return layout, prompt.settle(narrow)


@pytest.mark.parametrize("narrow", [False, True])
def test_what_is_chosen_is_the_answer_and_is_cited_whole(reader_tokenizer: Any, narrow: bool) -> None:
    layout, prompt = settled(reader_tokenizer, 1, 4, narrow=narrow)
    shown, spans = read(layout, prompt, list(prompt.answer))
    assert shown == "It has two moles of granite. Nobody remembers that."
    assert [span.cited_text for span in spans] == ["It has two\nmoles of granite.", "Nobody remembers that."]
    assert [shown[span.answer_start : span.answer_end] for span in spans] == [
        "It has two moles of granite.",
        "Nobody remembers that.",
    ]
    assert prompt.answer[-1] == reader_tokenizer.eos_token_id
    assert len(prompt.context) == (3 if narrow else 6)
    assert prompt.settle is None


def test_an_answer_cut_short_cites_its_whole_sentences_alone(reader_tokenizer: Any) -> None:
    layout, prompt = settled(reader_tokenizer, 0, 1, narrow=True)
    shown, spans = read(layout, prompt, list(prompt.answer[:-5]))
    assert shown.startswith("The harbour was built in 1871. It has")
    assert spans[0].cited_text == "The harbour was built in 1871."
    assert all(span.answer_end <= len(shown) for span in spans)


def test_nothing_chosen_is_the_refusal(reader_tokenizer: Any) -> None:
    layout, prompt = settled(reader_tokenizer, narrow=True)
    assert read(layout, prompt, list(prompt.answer)) == (NOT_STATED, [])


def test_sentences_that_the_model_could_not_copy_are_quoted_whole(reader_tokenizer: Any) -> None:
    long = (
        "The keeper, who came from the islands in the north with his wife, and whose father had kept the old lamp "
        "before him, until a storm took the tower and all that stood beside it, among them a school, two barns, the "
        "house of a priest called Jonas Weir, a mill that nobody had used for years and the only tavern between Aldby "
        "and the harbour, lit it first."
    )
    assert len(long) > LONGEST
    layout, prompt = settled(reader_tokenizer, 1, narrow=True, text=f"Who lit it? {long}")
    shown, (span,) = read(layout, prompt, list(prompt.answer))
    assert shown == span.cited_text == long


def test_rows_of_a_table_are_sentences(reader_tokenizer: Any) -> None:
    text = "Stock | Item: Rope. Old | Amount: 12\nStock | Item: Tar | Amount: 3"
    layout, prompt = settled(reader_tokenizer, 1, narrow=True, text=text)
    assert read(layout, prompt, list(prompt.answer))[0] == "Stock | Item: Tar | Amount: 3"


def test_a_row_is_quoted_under_the_names_of_its_columns(reader_tokenizer: Any) -> None:
    table = "| Item | Amount |\n| --- | --- |\n| Rope | 12 |\n| Tar | 3 |"
    layout, prompt = settled(reader_tokenizer, 3, narrow=True, text=f"The stock.\n\n{table}\n\n| Ada | 1871 |")
    assert read(layout, prompt, list(prompt.answer))[0] == "| Item | Amount |\n| Tar | 3 |"
    layout, prompt = settled(reader_tokenizer, 4, narrow=True, text=f"The stock.\n\n{table}\n\n| Ada | 1871 |")
    assert read(layout, prompt, list(prompt.answer))[0] == "| Ada | 1871 |"


def test_what_is_forced_is_what_is_encoded(reader_tokenizer: Any) -> None:
    """The quotation's tokens are those of the prompt, where drafters look for them."""
    _, prompt = settled(reader_tokenizer, 3, narrow=False)
    ids, quoted = "".join(map(chr, prompt.ids)), "".join(map(chr, prompt.answer))
    assert quoted in ids


def test_rows_that_are_quoted_together_stand_on_lines_of_their_own(reader_tokenizer: Any) -> None:
    text = "Stock | Item: Rope | Amount: 12\nStock | Item: Tar | Amount: 3"
    layout, prompt = settled(reader_tokenizer, 0, 1, narrow=True, text=text)
    shown, spans = read(layout, prompt, list(prompt.answer))
    assert shown == text
    assert len(spans) == 2
