"""The stop rule: which token is the last, why, and what text was shown by then."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from service.engine.detokenizer import Detokenizer
from service.engine.finish import Emitted, FinishReason, StopChecker

STOP_ID = 9


class Letters:
    """A tokenizer of one letter a token: 0 is a, 1 is b, …"""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return "".join(chr(ord("a") + token) for token in token_ids if token != STOP_ID)


def steps(groups: Sequence[Sequence[int]], stop: Sequence[str] = (), max_tokens: int = 20) -> list[Emitted]:
    """What is kept of each step's tokens, up to the end."""
    checker = StopChecker(frozenset({STOP_ID}), max_tokens, Detokenizer(Letters(), stop))
    kept: list[Emitted] = []
    for group in groups:
        kept.append(checker.take(group, sum(len(emitted.token_ids) for emitted in kept)))
        if kept[-1].reason is not None:
            break
    return kept


@pytest.mark.parametrize("groups", [[[0, 1, STOP_ID, 2]], [[0], [1], [STOP_ID], [2]], [[0, 1], [STOP_ID, 2, 3]]])
def test_a_stop_id_is_the_last_token_however_steps_are_cut(groups: list[list[int]]) -> None:
    kept = steps(groups)
    assert [token for emitted in kept for token in emitted.token_ids] == [0, 1, STOP_ID]
    assert kept[-1].reason is FinishReason.STOP
    assert "".join(piece for emitted in kept for piece in emitted.pieces) == "ab"


@pytest.mark.parametrize("groups", [[[0, 1, 2, 3, 4]], [[0, 1], [2, 3], [4]], [[0], [1], [2], [3], [4]]])
def test_a_stop_string_ends_at_the_token_that_completes_it_and_is_not_shown(groups: list[list[int]]) -> None:
    kept = steps(groups, stop=("bcd",))
    assert [token for emitted in kept for token in emitted.token_ids] == [0, 1, 2, 3]
    assert kept[-1].reason is FinishReason.STOP
    assert "".join(piece for emitted in kept for piece in emitted.pieces) == "a"


def test_the_last_token_that_was_asked_for_ends_it_and_what_was_held_back_is_shown() -> None:
    kept = steps([[0, 1], [2, 3, 4]], stop=("cdx",), max_tokens=4)
    assert kept == [Emitted([0, 1], ["a", "b"]), Emitted([2, 3], ["", "cd"], FinishReason.LENGTH)]


def test_a_stop_string_counts_though_its_last_token_is_the_last_that_was_asked_for() -> None:
    assert steps([[0, 1, 2]], stop=("bc",), max_tokens=3)[-1].reason is FinishReason.STOP


def test_without_a_tokenizer_there_is_no_text() -> None:
    checker = StopChecker(frozenset({STOP_ID}), 3)
    assert checker.take([1, 2], 0) == Emitted([1, 2])
    assert checker.take([4, 5], 2) == Emitted([4], [], FinishReason.LENGTH)
