"""kNN-LM: the sequential loop against the speculative one, exact and approximate, on a datastore of real text.

The datastore holds the model's hidden states over text that lies on the machine; it is made once, in pieces if need be
(``--minutes``), and kept in the cache folder. Prompts are passages of files that are not in it. Every prompt is decoded
by both loops one after the other, and every token must be the same.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from eval.bench import _passages
from eval.errors import EvalError
from eval.figures import report_result
from retrieval.iterative.strides import Experiences

TARGETS = {"exact_speedup": 7.59, "approximate_speedup": 2.45}
HELD_OUT = 20
"""one file in so many gives prompts and no entries"""
LONGEST_TEXT = 200_000
"""characters of one file, so that no book fills the datastore"""
SHORTEST_TEXT = 500
LETTERS = 0.6
"""least share of letters: a table of numbers is no text"""
PROMPT_TOKENS = 64
PAGES_MB = 256


def run(
    entries: int,
    texts: Sequence[Path],
    prompts: int,
    new_tokens: int,
    ks: Sequence[int],
    lists: int,
    probes: int,
    minutes: float,
    cache: Path | None = None,
) -> dict[str, Any] | None:
    """The figures, or None where the time was up before all was done: call again to go on."""
    deadline = time.monotonic() + 60 * minutes
    bench = Bench(entries, texts, lists, probes, cache or cache_folder())
    with bench.engine:
        if not bench.build(deadline):
            return None
        rows = bench.measure(prompts, new_tokens, ks, deadline)
        if rows is None:
            return None
        return {
            **bench.description(),
            "prompts": prompts,
            "prompt_tokens": PROMPT_TOKENS,
            "new_tokens": new_tokens,
            "recall": {str(k): bench.recall(k, prompts) for k in ks},
            "rows": summaries(rows),
            "targets": TARGETS,
        }


def cache_folder() -> Path:
    """``knn`` in Folio's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "folio" / "knn"


class Bench:
    """One datastore of the embedded reader and the model over it."""

    def __init__(self, entries: int, texts: Sequence[Path], lists: int, probes: int, cache: Path) -> None:
        from service.answering.knn import identity
        from service.engine.async_engine import AsyncEngine

        self.entries, self.lists, self.probes = entries, lists, probes
        self._texts = [*texts, *_passages.default_folders()]
        self._cache = cache
        self._experiences = Experiences()
        options = {"kv_memory": PAGES_MB << 20, "drafter": "none", "attention": "dense"}
        self.engine = AsyncEngine.from_pretrained("embedded", **options)
        self.identity = identity(self.engine.engine.loaded)
        self.folder = cache / f"{self.identity.model}-{entries}"

    def build(self, deadline: float) -> bool:
        """Make the datastore, or go on making it; False when the time was up."""
        from retrieval.knn.store import StoreBuilder
        from service.answering.knn import build

        if (self.folder / "manifest.json").is_file():
            return True
        self._cache.mkdir(parents=True, exist_ok=True)
        builder = StoreBuilder(self.folder, self.identity)
        documents = ((key, text) for key, text, held_out in self._documents() if not held_out)
        whole = build(self.engine, documents, builder, self.entries, deadline)
        print(f"{builder.entries:,} of {self.entries:,} entries", file=sys.stderr)
        if not whole:
            builder.close()
            return False
        if builder.entries < self.entries:
            raise EvalError(f"the texts give {builder.entries:,} entries of {self.entries:,}; name more with --text")
        builder.finish(self.lists)
        return True

    def measure(self, prompts: int, new_tokens: int, ks: Sequence[int], deadline: float) -> list[dict[str, Any]] | None:
        """One row a search, k and prompt, kept in the cache folder as they come; None when the time was up."""
        from retrieval.knn.decoding import KnnOptions

        searches = self._searches()
        for search in searches.values():  # loops are compiled before the clock starts
            for speculate in (False, True):
                self._decode(self._prompts(1)[0], search, KnnOptions(ks[0], speculate=speculate), 4)
        path = self._cache / f"rows-{self.folder.name}-{new_tokens}-{self.probes}.jsonl"
        known = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        done = {(row["search"], row["k"], row["prompt"]): row for row in known}
        questions = self._prompts(prompts)
        for name, search in searches.items():
            for k in ks:
                for number, prompt in enumerate(questions):
                    if (name, k, number) in done:
                        continue
                    if time.monotonic() > deadline:
                        return None
                    modes = ("sequential", "speculative")
                    both = {
                        mode: self._decode(prompt, search, KnnOptions(k, speculate=mode == "speculative"), new_tokens)
                        for mode in (modes if number % 2 else modes[::-1])
                    }
                    row = {"search": name, "k": k, "prompt": number, **both}
                    done[name, k, number] = row
                    with path.open("a") as file:
                        file.write(json.dumps(row) + "\n")
        return [row for row in done.values() if row["k"] in ks and row["prompt"] < prompts]

    def recall(self, k: int, prompts: int, queries: int = 64) -> float:
        """Share of the true k neighbours that the approximate search finds, of hidden states from the first prompts."""
        from service.answering.knn import hidden_states

        exact, approximate = self._searches().values()
        asked = self._prompts(min(8, prompts))
        states = np.concatenate([hidden_states(self.engine, prompt) for prompt in asked])
        picked = states[:: max(1, len(states) // queries)][:queries]
        found = zip(exact(picked, k).entries, approximate(picked, k).entries, strict=True)
        return float(np.mean([len(np.intersect1d(one, other)) / k for one, other in found]))

    def description(self) -> dict[str, Any]:
        return {
            "model": "embedded",
            "entries": len(self._searches()["exact"].store),
            "dimension": self.identity.dim,
            "keys": self.identity.key_type,
            "lists": self.lists,
            "probes": self.probes,
        }

    def _searches(self) -> dict[str, Any]:
        from retrieval.knn.search import ExactSearch, ListSearch
        from retrieval.knn.store import Datastore, read_manifest

        if not hasattr(self, "_opened"):
            # its hashes are checked when the service opens it; here the same process has just written it, or a bench
            store = Datastore(self.folder, read_manifest(self.folder))
            self._opened = {"exact": ExactSearch(store), "approximate": ListSearch(store, self.probes)}
        return self._opened

    def _decode(self, prompt: list[int], search: Any, options: Any, new_tokens: int) -> dict[str, Any]:
        from service.answering.knn import KnnRequest
        from service.engine.request import SamplingParams

        params = SamplingParams(max_tokens=new_tokens, ignore_eos=True)
        request = KnnRequest(search, options, experience=self._experiences.of((search, options)))
        started = time.perf_counter()
        (found,) = self.engine.generate([prompt], params, mixture=request)
        return {"s": time.perf_counter() - started, "ids": found.token_ids, "stats": found.stats["knn"]}

    def _prompts(self, count: int) -> list[list[int]]:
        from service.answering.knn import encode

        found = []
        for _, text, held_out in self._documents():
            ids = encode(self.engine.engine.tokenizer, text[: 40 * PROMPT_TOKENS])
            if held_out and len(ids) > 2 * PROMPT_TOKENS:
                found.append(ids[PROMPT_TOKENS : 2 * PROMPT_TOKENS])
            if len(found) == count:
                return found
        raise EvalError(f"the texts give {len(found)} prompts of {count}; name more with --text")

    def _documents(self) -> Iterator[tuple[tuple[str, int], str, bool]]:
        """(key, prose, whether it is held out) of every file of mostly letters, equal ones once.

        By the hash of their paths, an order that a new file does not change for the others.
        """
        seen: set[bytes] = set()
        names = {blake2b(str(file).encode(), digest_size=8).hexdigest(): file for file in _passages.files(self._texts)}
        for name, file in sorted(names.items()):
            text = "\n\n".join(_passages.prose(file))[:LONGEST_TEXT]
            digest = blake2b(text.encode(), digest_size=8).digest()
            if len(text) < SHORTEST_TEXT or digest in seen or sum(map(str.isalpha, text)) < LETTERS * len(text):
                continue
            seen.add(digest)
            yield (name, 1), text, int(name, 16) % HELD_OUT == 0


def summaries(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line a search and k."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["search"], row["k"]), []).append(row)
    return [_summary(name, k, group) for (name, k), group in groups.items()]


def _summary(name: str, k: int, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    one, other = [row["sequential"] for row in rows], [row["speculative"] for row in rows]

    def total(side: Sequence[dict[str, Any]], what: Callable[[dict[str, Any]], float]) -> float:
        return sum(what(each) for each in side)

    search_s, all_s = total(one, lambda r: r["stats"]["search_s"]), total(one, lambda r: r["s"])
    guessed = total(other, lambda r: r["stats"]["guessed"])
    return {
        "search": name,
        "k": k,
        "prompts": len(rows),
        "identical": sum(a["ids"] == b["ids"] for a, b in zip(one, other, strict=True)),
        "sequential_s": all_s,
        "speculative_s": total(other, lambda r: r["s"]),
        "speedup": all_s / total(other, lambda r: r["s"]),
        "speedup_median": statistics.median(a["s"] / b["s"] for a, b in zip(one, other, strict=True)),
        "retrieval_share": search_s / all_s,
        "amdahl_ceiling": all_s / (all_s - search_s),
        "sequential_search_ms": 1e3 * search_s / total(one, lambda r: r["stats"]["lookups"]),
        "batched_search_ms_per_query": 1e3
        * total(other, lambda r: r["stats"]["search_s"])
        / total(other, lambda r: r["stats"]["lookups"]),
        "model_ms_per_step": 1e3
        * total(other, lambda r: r["stats"]["model_s"])
        / total(other, lambda r: r["stats"]["steps"]),
        "cache_ms_per_step": 1e3
        * total(other, lambda r: r["stats"]["cache_s"])
        / total(other, lambda r: r["stats"]["steps"]),
        "acceptance": total(other, lambda r: r["stats"]["matched"]) / guessed if guessed else None,
        "mean_stride": total(other, lambda r: r["stats"]["steps"]) / total(other, lambda r: r["stats"]["rounds"]),
    }


def command(
    entries: Annotated[int, typer.Option(help="Entries of the datastore.", min=1000)] = 1_000_000,
    text: Annotated[list[Path] | None, typer.Option(help="Folder of texts, before the default ones.")] = None,
    prompts: Annotated[int, typer.Option(help="Prompts.", min=1)] = 30,
    new_tokens: Annotated[int, typer.Option(help="Tokens decoded a prompt.", min=2)] = 128,
    k: Annotated[list[int] | None, typer.Option(help="Neighbours of a token; may be repeated.")] = None,
    lists: Annotated[int, typer.Option(help="Inverted lists of the approximate search.", min=1)] = 1024,
    probes: Annotated[int, typer.Option(help="Lists that it looks at.", min=1)] = 64,
    minutes: Annotated[float, typer.Option(help="Stop after so long, to be called again.", min=0.0)] = 1e6,
    output: Annotated[Path | None, typer.Option(help="where the figures go")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures")] = False,
) -> None:
    """kNN-LM, sequential beside speculative; the same tokens demanded of both."""
    figures = run(entries, text or [], prompts, new_tokens, k or [1, 64, 1024], lists, probes, minutes)
    if figures is None:
        typer.echo("not finished; run the same command again to go on", err=True)
        raise typer.Exit(3)
    report_result("knn", figures, as_json=as_json, output=output)
