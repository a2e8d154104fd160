"""Files that take as long as they can, in their owner's turn alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eval.bench.serving.hostile import House


def test_a_file_holds_up_its_owner_alone(attack: Any, harmless: Callable[[Any], str]) -> None:
    assert harmless(attack)


def test_no_child_is_left(attacked: House) -> None:
    assert attacked.children_left() == 0
