"""Lines of JSON between `eval.peers.client` and a worker; standard library only, as it runs in foreign environments.

    {"op": "load", "model": PATH, "threads": N, "context": TOKENS, "sequences": N, "option": TEXT, "precision": TEXT}
                                                     → {"load_s": S, "rss_mb": M, "about": TEXT}
    {"op": "generate", "ids": [...], "new_tokens": N} → {"ids": [...], "ttft_s": S, "total_s": S, "rss_mb": M}
    {"op": "batch", "prompts": [[...], ...], "new_tokens": N} → {"ids": [[...], ...], "total_s": S, "rss_mb": M}
    {"op": "score", "ids": [...]} → {"loss": L}: the mean negative log-likelihood of all ids but the first

A failure is {"error": TEXT}. Decoding is greedy and never stops before `new_tokens`. Loading is timed without the
import of the libraries, which a worker names.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any


def serve(
    load: Callable[[dict[str, Any]], Any],
    stream: Callable[[Any, list[int], int], Iterator[int]],
    batch: Callable[[Any, list[list[int]], int], list[list[int]]] | None = None,
    score: Callable[[Any, list[int]], float] | None = None,
    about: Callable[[Any], str] = lambda engine: "",
    imports: tuple[str, ...] = (),
) -> None:
    """Answer requests until stdin ends.

    Args:
        load: makes the engine from a load request.
        stream: yields the generated ids as they come.
        batch: generates for many prompts at once, in their order; None where the engine cannot.
        score: the loss of a text; None where the engine does not tell.
        about: what the engine says of itself: its build, its numbers.
        imports: modules that are there before the clock of loading starts.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # engines that print must not print between our lines
    engine = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["op"] == "load":
                for name in imports:
                    importlib.import_module(name)
                began = time.perf_counter()
                engine = load(request)
                load_s = time.perf_counter() - began
                reply: dict[str, Any] = {"load_s": load_s, "rss_mb": peak_mb(), "about": about(engine)}
            elif request["op"] == "batch":
                if batch is None:
                    raise NotImplementedError("this worker takes one prompt at a time")
                reply = _batch(batch, engine, request)
            elif request["op"] == "score":
                if score is None:
                    raise NotImplementedError("this worker does not tell what a text is worth")
                reply = {"loss": score(engine, request["ids"])}
            else:
                reply = _generate(stream, engine, request)
        except Exception as error:  # the other side shows it and goes on with the next engine
            reply = {"error": f"{type(error).__name__}: {error}"}
        out.write(json.dumps(reply) + "\n")
        out.flush()


def _generate(stream: Callable[[Any, list[int], int], Iterator[int]], engine: Any, request: dict[str, Any]) -> dict:
    began = time.perf_counter()
    first, ids = None, []
    for token in stream(engine, request["ids"], request["new_tokens"]):
        first = first or time.perf_counter()
        ids.append(int(token))
    ended = time.perf_counter()
    return {"ids": ids, "ttft_s": (first or ended) - began, "total_s": ended - began, "rss_mb": peak_mb()}


def _batch(batch: Callable[[Any, list[list[int]], int], list[list[int]]], engine: Any, request: dict[str, Any]) -> dict:
    began = time.perf_counter()
    ids = batch(engine, request["prompts"], request["new_tokens"])
    return {"ids": ids, "total_s": time.perf_counter() - began, "rss_mb": peak_mb()}


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MiB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
