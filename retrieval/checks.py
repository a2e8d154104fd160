"""Arguments that callers get wrong, refused in words."""

from __future__ import annotations

from retrieval.errors import InvalidRequest

MAX_K = 1000
_LABEL_LENGTH = {"collection": 255, "owner": 64}


def check_query(query: str, k: int, mode: str) -> None:
    """Error: InvalidRequest."""
    if not query.strip():
        raise InvalidRequest("the query is empty; ask something")
    if not 1 <= k <= MAX_K:
        raise InvalidRequest(f"k must be from 1 to {MAX_K}, not {k}")
    if mode not in ("hybrid", "dense", "sparse"):
        raise InvalidRequest(f"unknown search mode {mode!r}; use hybrid, dense or sparse")


def check_label(what: str, value: str) -> None:
    """``what``: collection or owner. Error: InvalidRequest."""
    limit = _LABEL_LENGTH[what]
    if not value.strip() or len(value) > limit or not value.isprintable():
        raise InvalidRequest(f"{what} must be 1 to {limit} printable characters, not {value!r}")


def check_span(start: int, end: int | None) -> None:
    """Error: InvalidRequest."""
    if start < 0 or (end is not None and end < start):
        raise InvalidRequest(f"a span needs 0 <= start <= end, not {start}:{end}")
