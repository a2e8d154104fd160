"""Sentences are read in the chunk that was found, or in as much of a whole document."""

from service.answering.passages import Passage, canonical
from service.reader.contexts import CHUNK_CHARS, READ_CHARS, contexts
from service.reader.sentences import split


def passage(text: str, start: int = 0, document: str = "d", context: str = "") -> Passage:
    return Passage(document, "d.txt", start, start + len(text), None, text, context=context)


def read(*found: Passage) -> list[tuple[str, str]]:
    """Each sentence, and what it is read in."""
    told = [(one, sentence) for one in canonical(found) for sentence in split(one.text)]
    return list(zip([sentence.words for _, sentence in told], contexts(told, found), strict=True))


def test_a_chunk_is_read_alone_and_under_what_stands_above_it() -> None:
    first, second = "The lamp was lit.\nIt burns. ", "Ships came."
    found = [passage(second, len(first)), passage(first, context="The harbour"), passage("Bees.", document="e")]
    lamp = "The harbour The lamp was lit. It burns."
    assert read(*found) == [
        ("The lamp was lit.", lamp),
        ("It burns.", lamp),
        ("Ships came.", "Ships came."),
        ("Bees.", "Bees."),
    ]


def test_a_document_that_is_given_whole_is_read_in_parts() -> None:
    text = " ".join(f"Ship number {n} carried granite from the islands." for n in range(60))
    assert len(text) > CHUNK_CHARS
    parts = read(passage(text))
    assert all(sentence in context for sentence, context in parts)
    assert max(len(context) for _, context in parts) <= READ_CHARS + 60
    assert " ".join(dict.fromkeys(context for _, context in parts)) == text


def test_nothing_is_read_in_nothing() -> None:
    assert contexts([], []) == []
