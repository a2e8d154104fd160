"""What the reader is asked, and what of its answer is shown."""

from itertools import pairwise
from typing import Any

import pytest

from service.answering.passages import Passage
from service.errors import InvalidRequest
from service.reader.layout import ReaderLayout
from service.reader.tokenizer import REFERENCES, reference

STORED = (
    "The harbour was built in 1871.  It has two\nmoles of granite. A lamp burns <|r1|> on the northern one! "
    "Who lit it first?\n\nNobody remembers."
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


def test_a_prompt_holds_the_sentences_in_order_and_evidence_cannot_forge_tokens(layout: ReaderLayout) -> None:
    prompt = layout.build("  Who lit\nthe lamp? ", [passage()])
    numbers = [layout._numbers[token] for token in prompt.ids if token in layout._numbers]
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
