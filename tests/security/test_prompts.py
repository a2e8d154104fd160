"""Texts by the megabyte: refused for as much work as the window is long, in the asker's own turn."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

TOO_LONG = r"400 This model's maximum context length is \d+ tokens; the prompt has at least \d+\."
TOLD = {
    "three chats of 3 MB": TOO_LONG,
    "three prompts of 3 MB of &": TOO_LONG,
    "three prompts of one word": TOO_LONG,
    "three chats of 3 MB of spaces": TOO_LONG,
    "clients that leave": "the connection was closed",
    "embeddings of 10 MB": r"400 The texts have 10,000,000 characters; 2,000,000 are embedded at once\.",
    "search queries of 20,000 characters": "200 ",
    "a history of 800 turns": "200 ",
}


def test_a_prompt_is_bounded(attack: Any, harmless: Callable[[Any], str]) -> None:
    told = harmless(attack)
    assert re.match(TOLD[attack.name], told), told
