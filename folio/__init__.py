"""Folio from Python.

    from folio import LLM
    print(LLM("embedded").generate(["Ada built the bridge. Who built it?"])[0].text)

`LLM` runs a model, `Library` keeps documents and searches them, `ask` answers a question over them with citations
that are checked against their text. What they import is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from folio._ask import ask as ask
    from folio._llm import LLM as LLM
    from retrieval.library import Library as Library
    from service.engine.params import SamplingParams as SamplingParams

__version__ = version("folio-serve")
__all__ = ["LLM", "Library", "SamplingParams", "__version__", "ask"]

_HOMES = {
    "LLM": "folio._llm",
    "Library": "retrieval.library",
    "SamplingParams": "service.engine.params",
    "ask": "folio._ask",
}

if not structlog.is_configured():  # a library is silent until something is wrong
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'folio' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
