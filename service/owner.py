"""In whose name code runs.

The door of the service (`service.api.auth`) says it once for a request; whatever is asked of the engine on the way, by
whichever route and in whichever task or thread, carries it (`SamplingParams.owner`), and no route can forget to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from retrieval.types import DEFAULT_OWNER

_owner: ContextVar[str] = ContextVar("owner", default=DEFAULT_OWNER)


def present_owner() -> str:
    """The owner in whose name this runs; ``DEFAULT_OWNER`` where nobody has been named."""
    return _owner.get()


@contextmanager
def in_the_name_of(owner: str) -> Iterator[None]:
    """Run the block, and the tasks and threads that it starts, in an owner's name."""
    token = _owner.set(owner)
    try:
        yield
    finally:
        _owner.reset(token)
