"""The process behind ``grammars``: for every line of its input, a grammar, it says why it cannot be used, or nothing.

It has less stack than the threads of the service and bounded memory, so that what it survives does no harm there.
"""

from __future__ import annotations

import json
import resource
import sys
import threading

from llguidance import LLMatcher, LLTokenizer

STACK_BYTES = 2 << 20
"""A thread of the service has 8 MiB."""
MEMORY_BYTES = 2 << 30


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(STACK_BYTES)
    worker = threading.Thread(target=_serve)
    worker.start()
    worker.join()


def _serve() -> None:
    bytes_alone = LLTokenizer("byte")
    _say("ready")
    for line in sys.stdin:
        _say(_why_not(bytes_alone, json.loads(line)))


def _why_not(vocabulary: LLTokenizer, grammar: str) -> str:
    """Compile it and take its first step."""
    try:
        matcher = LLMatcher(vocabulary, grammar, log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()
        return matcher.get_error() if matcher.is_error() else ""
    except ValueError as error:
        return str(error)


def _say(message: str) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
