"""Text shown token by token: what a whole decoding gives, and what two decodings a token gave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.detokenizer import Detokenizer
from service.engine.loading.checkpoint import load_tokenizer
from service.reader import MODEL_DIR

TEXT = "The bridge at Hampton was built by Ada Miller in 1862. " * 8
MIXED = st.text(st.sampled_from("ab .'\nnt éß中文字😀👩‍👩‍👧𝔘 \u0301"), max_size=40)


class Counting:
    """A tokenizer that counts what is decoded."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.calls = tokenizer, 0

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        self.calls += 1
        return self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)


class TwoDecodings:
    """The rule in its plain form: the text of the new tokens with six before them, less the text of those six."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.start = self.done = 0

    def push(self, token: int, last: bool) -> str:
        self.ids.append(token)
        before = self.tokenizer.decode(self.ids[self.start : self.done], skip_special_tokens=True)
        now = self.tokenizer.decode(self.ids[self.start :], skip_special_tokens=True)
        if now.endswith("\ufffd") and len(self.ids) - self.done < 8 and not last:
            return ""
        self.start, self.done = max(0, len(self.ids) - 6), len(self.ids)
        return now[len(before) :]


@pytest.fixture(scope="module")
def embedded() -> Any:
    """The embedded reader's: byte-level BPE."""
    return load_tokenizer(str(MODEL_DIR))


@pytest.fixture(scope="module")
def bytewise() -> Any:
    """Byte-level BPE without merges: every token is one byte, a character up to four."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")


@pytest.fixture(scope="module")
def sentencepiece() -> Any:
    """As Llama 2's: ▁ for a space, the first one dropped; other characters than a few letters are bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    symbols = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abnt.'", "▁a", "▁▁", "▁b"]
    merges = [("▁", "a"), ("▁", "▁"), ("▁", "b")]
    vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
    raw = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>")


@pytest.fixture(scope="module", params=["embedded", "bytewise", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def shown(tokenizer: Any, ids: Sequence[int], sizes: Sequence[int] = (1,), stop: Sequence[str] = ()) -> list[str]:
    """The pieces, with ``sizes`` tokens at once, one after the other and from the start again."""
    detokenizer = Detokenizer(tokenizer, stop)
    pieces: list[str] = []
    begin = 0
    while begin < len(ids) and not detokenizer.stopped:
        end = begin + sizes[len(pieces) % len(sizes)]
        pieces.append(detokenizer.push(ids[begin:end], last=end >= len(ids)))
        begin = end
    assert detokenizer.text == "".join(pieces)
    return pieces


@given(text=MIXED, sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), data=st.data())
def test_pieces_join_to_the_whole_text(tokenizer: Any, text: str, sizes: list[int], data: st.DataObject) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    for place in data.draw(st.lists(st.integers(0, 40), max_size=2)):
        ids.insert(place, tokenizer.eos_token_id)
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(shown(tokenizer, ids, sizes)) == whole


@given(data=st.data())
def test_any_tokens_give_the_pieces_of_two_decodings(embedded: Any, bytewise: Any, data: st.DataObject) -> None:
    tokenizer = data.draw(st.sampled_from([embedded, bytewise]))
    cut = tokenizer.encode("中😀é", add_special_tokens=False)
    token = st.one_of(st.integers(0, len(tokenizer) - 1), st.sampled_from(cut))
    ids = data.draw(st.lists(token, max_size=60))
    reference = TwoDecodings(tokenizer)
    assert shown(tokenizer, ids) == [reference.push(token, i + 1 == len(ids)) for i, token in enumerate(ids)]


def test_a_run_of_characters_in_bytes_stays_whole(sentencepiece: Any) -> None:
    """Six tokens of a run of four-byte characters begin in the midst of one: the context has to begin at another."""
    ids = sentencepiece.encode("a " + "😀" * 12 + " b", add_special_tokens=False)
    pieces = shown(sentencepiece, ids)
    assert "".join(pieces) == "a " + "😀" * 12 + " b"
    assert pieces.count("😀") == 12


def test_a_space_after_tokens_without_text_stays(sentencepiece: Any) -> None:
    """The first token decoded loses its space: the context has to hold a token that shows."""
    words = [sentencepiece.encode(word, add_special_tokens=False) for word in ("a", "b", "nab", "a", "b", "tan")]
    ids = [token for word in words for token in [*word, *[sentencepiece.eos_token_id] * 5]]
    assert "".join(shown(sentencepiece, ids)) == "a b nab a b tan"


def test_text_is_found_again_after_a_byte_that_is_no_character(sentencepiece: Any) -> None:
    stray = sentencepiece.convert_tokens_to_ids("<0xFF>")
    ids = [*sentencepiece.encode("a中", add_special_tokens=False), stray]
    ids += sentencepiece.encode("中" * 12, add_special_tokens=False)[1:]
    text = "".join(shown(sentencepiece, ids))
    assert text.startswith("a中\ufffd")
    assert text.endswith("中中中")


def test_bytes_that_never_become_a_character_are_shown_at_last(bytewise: Any) -> None:
    stray = bytewise.convert_tokens_to_ids("ÿ")  # the byte FF
    pieces = shown(bytewise, [stray] * 16 + bytewise.encode("a", add_special_tokens=False))
    assert [len(piece) for piece in pieces] == [*[0] * 7, 8] * 2 + [1]


@pytest.mark.parametrize("stop", [(), ("never",)])
def test_a_token_costs_about_one_decoding(embedded: Any, stop: tuple[str, ...]) -> None:
    counting = Counting(embedded)
    ids = embedded.encode(TEXT, add_special_tokens=False)[:64]
    assert "".join(shown(counting, ids, stop=stop)) == embedded.decode(ids)
    assert counting.calls <= 1.25 * len(ids)


@given(text=MIXED, stop=st.text("ab中😀 ", min_size=1, max_size=3))
def test_nothing_of_a_stop_string_is_shown(tokenizer: Any, text: str, stop: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(shown(tokenizer, ids, stop=("never", stop))) == whole.split(stop)[0]
