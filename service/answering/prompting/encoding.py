"""Text to token ids: our own, in which control tokens count, and other people's, in which nothing does."""

from __future__ import annotations

import copy
import re
import threading
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

from service.answering.prompting.length import LengthCheck
from service.answering.prompting.marked import OURS, Marked


class Encoder:
    """Text to ids, from any thread.

    A tokenizer must not be used by one thread while another (the engine's, decoding) does: this class works on a copy
    of its own, and encodes other people's text by the words and merges alone, without any token that was added.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = copy.deepcopy(tokenizer)
        self._lock = threading.Lock()
        self._text = _FastText(self.tokenizer) if tokenizer.is_fast else _SlowText(copy.deepcopy(tokenizer))
        self.check_length = LengthCheck(self.tokenizer, self.text)
        """refuses texts that are longer than a window"""
        self.data = lru_cache(maxsize=32)(self.text)
        """`text`, whose last results are kept: questions about a document come together"""
        self._within = lru_cache(maxsize=32)(lambda text: self.text(text, begins=False))

    def rendered(self, text: Marked) -> list[int]:
        """Ids of a rendered chat template: its own control tokens count, what looks like one in a content is text.

        They are those of the tokenizer's own call wherever no content holds such.
        """
        if not self.tokenizer.is_fast:
            return self._by_runs(text)[0]
        whole = self._whole(text)
        return self._in_parts(text, [])[0] if whole is None else whole

    def rendered_apart(self, text: Marked) -> tuple[list[int], dict[int, range]]:
        """As `rendered`, but a content of one source is encoded by itself where one of another follows it.

        So prompts over the same passages share them, and neither is encoded twice.

        Returns:
            The ids, and by source which of them are the source's alone, for sources that stand between others.
        """
        if not self.tokenizer.is_fast:
            return self._by_runs(text)
        return self._in_parts(text, [end for (_, end, a), (_, _, b) in pairwise(text.runs()) if OURS not in (a, b)])

    def _by_runs(self, text: Marked) -> tuple[list[int], dict[int, range]]:
        """Ids of each run, and where those of a source are."""
        ids: list[int] = []
        places: dict[int, range] = {}
        for start, end, source in text.runs():
            run = str.__str__(text.cut(start, end))
            found = self.template(run) if source == OURS else self.text(run)
            places[source] = range(len(ids), len(ids) + len(found))
            ids += found
        return ids, places

    def _whole(self, text: Marked) -> list[int] | None:
        """Ids of the whole text; None if a content would become a control token, or a part of one."""
        found = self._found(str.__str__(text))
        theirs = [(start, end) for start, end, source in text.runs() if source != OURS]
        starts = [start for start, _ in theirs]
        for token, start, end in found:
            if token not in self._text.control:
                continue
            piece = str.__str__(text)[start:end]  # with the white space that some tokens take with them
            start, end = start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())
            before = bisect_left(starts, end) - 1
            if before >= 0 and theirs[before][1] > start:
                return None
        return [token for token, _, _ in found]

    def _in_parts(self, text: Marked, cuts: Sequence[int]) -> tuple[list[int], dict[int, range]]:
        """Ids of the template's control tokens, and of what stands between two of them, or of the cuts, as text.

        Also which are those of one source alone.
        """
        plain = str.__str__(text)
        tokens = [
            (start + first, start + last, token)
            for start, end, source in text.runs()
            if source == OURS
            for token, first, last in self._found(plain[start:end])
            if token in self._text.control
        ]
        whole = {(start, end): source for start, end, source in text.runs()}
        places: dict[int, range] = {}
        ids: list[int] = []
        at = 0
        for start, end, token in [*tokens, (len(plain), len(plain), None)]:
            inside = [cut for cut in cuts if at < cut < start]
            for first, last in pairwise([at, *inside, start]):
                found = (self._within if first else self.data)(plain[first:last])
                if (first, last) in whole:
                    places[whole[first, last]] = range(len(ids), len(ids) + len(found))
                ids += found
            if token is not None:
                ids.append(token)
            at = end
        return ids, places

    def preface(self, ids: Sequence[int], end: int) -> int:
        """How many of the first ``end`` ids stand before the turn of the last of them: to a token of control."""
        return next((i + 1 for i in reversed(range(end)) if ids[i] in self._text.control), 0)

    def _found(self, text: str) -> list[tuple[int, int, int]]:
        """(id, start, end) of each token of a text, as the tokenizer's own call finds them; none is added."""
        with self._lock:
            found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [(token, *place) for token, place in zip(found.input_ids, found.offset_mapping, strict=True)]

    def template(self, text: str) -> list[int]:
        """Ids of text of our own, special tokens recognised, none added."""
        with self._lock:
            return list(self.tokenizer.encode(text, add_special_tokens=False)) if text else []

    def plain(self, text: str) -> list[int]:
        """Ids of text as the tokenizer's own call gives them: special tokens recognised and added."""
        with self._lock:
            return list(self.tokenizer(text).input_ids)

    def decoded(self, ids: list[int], *, special: bool = False) -> str:
        """The text of ids, without tokens of control or with those by name."""
        with self._lock:
            return str(self.tokenizer.decode(ids, skip_special_tokens=not special))

    def text(self, text: str, begins: bool = True) -> tuple[int, ...]:
        """Ids of somebody else's text: what looks like a token of control is text.

        begins: nothing stands before it, where some tokenizers put a blank.
        """
        return tuple(self._text.encode(text, begins))


class _FastText:
    """A tokenizer's model, normaliser and splitter; of its added tokens those alone that are blanks."""

    def __init__(self, tokenizer: Any) -> None:
        whole = tokenizer.backend_tokenizer
        added = tokenizer.added_tokens_decoder
        blanks = {token.content: number for number, token in added.items() if _blank(token.content)}
        splitter = whole.pre_tokenizer
        self._model = self._reduced(whole, splitter, [added[number] for number in blanks.values()])
        self._within = self._model
        if isinstance(splitter, pre_tokenizers.Metaspace) and splitter.prepend_scheme == "first":
            never = pre_tokenizers.Metaspace(splitter.replacement, prepend_scheme="never", split=splitter.split)
            self._within = self._reduced(whole, never, [added[number] for number in blanks.values()])
        self._ids = {self._model.token_to_id(content): number for content, number in blanks.items()}
        """of blanks, by those that the reduced tokenizer gives them"""
        self.control = frozenset(added) - frozenset(blanks.values()) - {tokenizer.unk_token_id}

    @staticmethod
    def _reduced(whole: Tokenizer, splitter: Any, blanks: list[Any]) -> Tokenizer:
        model = Tokenizer(whole.model)
        model.normalizer, model.pre_tokenizer = whole.normalizer, splitter
        model.add_tokens(blanks)
        return model

    def encode(self, text: str, begins: bool) -> list[int]:
        """Ids, none of which is a token of control.

        A vocabulary may hold such a token as a word too: there the text is cut around the word's first character.
        """
        model = self._model if begins else self._within
        (encoding,) = model.encode_batch([text], add_special_tokens=False)  # other threads go on meanwhile
        ids = [self._ids.get(number, number) for number in encoding.ids]
        found = [encoding.offsets[i][0] for i, number in enumerate(ids) if number in self.control]
        if not found or len(text) == 1:
            return [number for number in ids if number not in self.control]
        cuts = sorted({0, *found, *(start + 1 for start in found), len(text)})
        return [
            number for start, end in pairwise(cuts) for number in self.encode(text[start:end], begins and not start)
        ]


class _SlowText:
    """A tokenizer in Python, told to split special tokens; the text is cut inside every other added token too."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self.control = frozenset[int]()  # nothing is known of places here
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        longest_first = sorted((content for content in added if not _blank(content)), key=len, reverse=True)
        self._added = re.compile("|".join(f"(?<={re.escape(c[0])})(?={re.escape(c[1:])})" for c in longest_first))

    def encode(self, text: str, begins: bool = True) -> list[int]:
        parts = self._added.split(text) if self._added.pattern else [text]
        with self._lock:
            encoded = [
                self._tokenizer.encode(part, add_special_tokens=False, split_special_tokens=True)
                for part in parts
                if part
            ]
        return [number for ids in encoded for number in ids]


def _blank(content: str) -> bool:
    """Whether a token is white space, as some vocabularies add it for the indentation of code."""
    return not content.replace("\u2581", " ").strip()
