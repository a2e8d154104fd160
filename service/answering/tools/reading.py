"""An answer's text and its calls, read as they come."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.answering.tools.calling import CallFormat
from service.answering.tools.grammar import BARE
from service.engine.outputs import TokenOutput

_FENCES = ("", "```", "```json")


@dataclass(frozen=True)
class CallPiece:
    """What one call gains.

    Attributes:
        index: the call's place among those of the answer.
        id, name: with the first piece of a call; "" with the others.
        arguments: a piece of JSON.
    """

    index: int
    arguments: str = ""
    id: str = ""
    name: str = ""


class CallReader:
    """Reads one answer that keeps to `grammar.calls_constraint`: text, then calls.

    What may turn out to begin a call is held back, and so is white space, which belongs to the call if one follows.
    """

    def __init__(self, written: CallFormat, unsaid: Mapping[str, int], names: Sequence[str] = ()) -> None:
        """Reads the calls of an answer.

        Args:
            unsaid: tokens with their ids that decoding leaves out, which `written` may name.
            names: of the tools that may be called without the format's opening; see `grammar.BARE`.
        """
        self.calls = 0
        self._trigger = written.opening.strip()
        self._head = re.compile(rf'\{{"name": "([^"]*)", "{written.key}": ')
        self._unsaid = {number: token for token, number in unsaid.items() if token in written.opening}
        self._bare = re.compile(BARE % (f"(?P<name>{'|'.join(map(re.escape, names))})", written.key))
        self._bare_heads = [f'{fence}{{"name":"{name}","{written.key}":' for fence in _FENCES for name in names]
        self._held = ""
        self._text = ""
        self._found: list[CallPiece] = []
        self._step = self._at_start if names else self._in_text
        self._depth = 0
        self._in_string = self._escaped = False

    def feed(self, output: TokenOutput) -> tuple[str, list[CallPiece]]:
        """The text, and the pieces of calls, that an output brings."""
        self._held += self._words(output)
        self._text, self._found = "", []
        while self._step():
            pass
        if output.finished and self._step in (self._at_start, self._in_text):
            self._text, self._held = self._text + self._held, ""
        return self._text, self._found

    def _words(self, output: TokenOutput) -> str:
        if not self._unsaid or len(output.pieces) != len(output.token_ids):
            return output.text
        pairs = zip(output.token_ids, output.pieces, strict=True)
        return "".join(self._unsaid.get(token, "") + piece for token, piece in pairs)

    # Each step says whether another one can follow before more comes.

    def _at_start(self) -> bool:
        """Until it is known whether the answer begins with a call."""
        bare = self._bare.match(self._held)
        if bare is not None:
            self._begin(bare.group("name"), bare.end())
            return True
        begun = "".join(self._held.split())
        if any(head.startswith(begun) for head in self._bare_heads):
            return False
        self._step = self._in_text
        return True

    def _in_text(self) -> bool:
        if not self._trigger:
            begun = self._held.lstrip()[:1]
            if begun:
                self._step = self._in_head if begun == "{" else self._in_text_alone
            return bool(begun)
        at = self._held.find(self._trigger)
        if at >= 0:
            self._text += self._held[:at].rstrip()
            self._held = self._held[at + len(self._trigger) :]
            self._step = self._in_head
            return True
        shown = self._held
        for size in range(min(len(self._trigger) - 1, len(shown)), 0, -1):
            if shown.endswith(self._trigger[:size]):
                shown = shown[:-size]
                break
        shown = shown.rstrip()
        self._text += shown
        self._held = self._held[len(shown) :]
        return False

    def _in_text_alone(self) -> bool:
        self._text, self._held = self._text + self._held, ""
        return False

    def _in_head(self) -> bool:
        head = self._head.search(self._held)
        if head is None:
            return False
        self._begin(head.group(1), head.end())
        return True

    def _begin(self, name: str, end: int) -> None:
        """A call whose head goes to there."""
        self._found.append(CallPiece(self.calls, id=f"call_{secrets.token_hex(12)}", name=name))
        self.calls += 1
        self._held = self._held[end:]
        self._step = self._in_arguments

    def _in_arguments(self) -> bool:
        """To the brace that closes the object, as far as it has come."""
        if not self._depth:
            self._held = self._held.lstrip()
        end = next((at for at, sign in enumerate(self._held, start=1) if self._closes(sign)), None)
        piece, self._held = self._held[:end], self._held[len(self._held) if end is None else end :]
        if piece:
            self._found.append(CallPiece(self.calls - 1, arguments=piece))
        if end is None:
            return False
        self._step = self._in_head
        return True

    def _closes(self, sign: str) -> bool:
        if self._in_string:
            self._in_string = self._escaped or sign != '"'
            self._escaped = sign == "\\" and not self._escaped
            return False
        self._in_string = sign == '"'
        self._depth += (sign == "{") - (sign == "}")
        return sign == "}" and self._depth == 0
