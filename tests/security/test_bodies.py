"""JSON of strangers is read in the event loop: what it takes is bounded by its values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TOLD = {
    "10 MB of [": "413 The body holds more than 1,000,000 values.",
    "JSON 900 deep": "400 ",
    "7 million values, 8 at once": "413 The body holds more than 1,000,000 values.",
    "a million values, 16 at once": "404 The model 'x' does not exist here.",
    "a million chunks of one byte": "400 ",
    "a multipart body of beginnings": "202 taken",
}


def test_a_body_is_bounded(attack: Any, harmless: Callable[[Any], str]) -> None:
    assert harmless(attack).startswith(TOLD[attack.name])
