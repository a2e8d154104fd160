"""kNN-LM: the sequential loop against the speculative one, exact and approximate, on a datastore of real text.

The datastore holds the model's hidden states over text that lies on the machine; it is made once, in pieces if need be
(``--minutes``), and kept in the cache folder. Prompts are passages of files that are not in it. Every prompt is decoded
by both loops one after the other, and every token must be the same.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from typer import Option

from eval.bench.base import BenchOptions, Cells, Figures, NewTokens, Row, Texts, bench
from eval.bench.retrieval import knowledge_base
from eval.bench.timer import ratio, timed
from eval.errors import EvalError
from retrieval.iterative.strides import Experiences
from retrieval.knn.decoding import KnnOptions
from retrieval.knn.search import ExactSearch, ListSearch
from retrieval.knn.store import Datastore, StoreBuilder, read_manifest
from service.answering.knn import KnnRequest, build, encode, hidden_states, identity
from service.answering.prompting.encoding import Encoder
from service.engine.async_engine import AsyncEngine
from service.engine.params import SamplingParams

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


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """kNN-LM, sequential beside speculative; the same tokens demanded of both."""

    entries: Annotated[int, Option(min=1000, help="Entries of the datastore.")] = 1_000_000
    text: Texts = ()
    prompts: Annotated[int, Option(min=1, help="Prompts.")] = 30
    new_tokens: NewTokens = 128
    k: Annotated[tuple[int, ...], Option(help="Neighbours of a token; may be repeated.")] = (1, 64, 1024)
    lists: Annotated[int, Option(min=1, help="Inverted lists of the approximate search.")] = 1024
    probes: Annotated[int, Option(min=1, help="Lists that it looks at.")] = 64
    minutes: Annotated[float, Option(min=0.0, help="Stop after so long, to be called again.")] = 1e6


def run(options: Options, cache: Path | None = None) -> Figures | None:
    """The figures, or None where the time was up before all was done: call again to go on."""
    deadline = time.monotonic() + 60 * options.minutes
    made = Bench(options, cache or knowledge_base.cache_folder("knn"))
    with made.engine:
        if not made.build(deadline):
            return None
        rows = made.measure(deadline)
        if rows is None:
            return None
        return {
            **made.description(),
            **options.told("prompts", "new_tokens"),
            "prompt_tokens": PROMPT_TOKENS,
            "recall": {str(k): made.recall(k) for k in options.k},
            "rows": summaries(rows),
            "targets": TARGETS,
        }


class Bench:
    """One datastore of the embedded reader and the model over it."""

    def __init__(self, options: Options, cache: Path) -> None:
        self.options = options
        self._texts = [*options.text, *knowledge_base.default_folders()]
        self._cache = cache
        self._experiences = Experiences()
        self.engine = AsyncEngine.from_pretrained(
            "embedded", kv_memory=PAGES_MB << 20, drafter="none", attention="dense"
        )
        self.identity = identity(self.engine.engine.loaded)
        self.folder = cache / f"{self.identity.model}-{options.entries}"

    def build(self, deadline: float) -> bool:
        """Make the datastore, or go on making it; False when the time was up."""
        if (self.folder / "manifest.json").is_file():
            return True
        self._cache.mkdir(parents=True, exist_ok=True)
        builder = StoreBuilder(self.folder, self.identity)
        documents = ((key, text) for key, text, held_out in self._documents() if not held_out)
        whole = build(self.engine, documents, builder, self.options.entries, deadline)
        print(f"{builder.entries:,} of {self.options.entries:,} entries", file=sys.stderr)
        if not whole:
            builder.close()
            return False
        if builder.entries < self.options.entries:
            raise EvalError(
                f"the texts give {builder.entries:,} entries of {self.options.entries:,}; name more with --text"
            )
        builder.finish(self.options.lists)
        return True

    def measure(self, deadline: float) -> list[Row] | None:
        """One row a search, k and prompt, kept in the cache folder as they come; None when the time was up."""
        ks, new_tokens = self.options.k, self.options.new_tokens
        for search, speculate in product(
            self.searches.values(), (False, True)
        ):  # loops compile before the clock starts
            self._decode(self._prompts(1)[0], search, KnnOptions(ks[0], speculate=speculate), 4)
        path = self._cache / f"rows-{self.folder.name}-{new_tokens}-{self.options.probes}.jsonl"
        known = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        cells = Cells(known)
        for (name, search), k in product(self.searches.items(), ks):
            for number, prompt in enumerate(self._prompts(self.options.prompts)):
                if cells.at(search=name, k=k, prompt=number):
                    continue
                if time.monotonic() > deadline:
                    return None
                modes = ("sequential", "speculative")
                both = {
                    mode: self._decode(prompt, search, KnnOptions(k, speculate=mode == "speculative"), new_tokens)
                    for mode in (modes if number % 2 else modes[::-1])
                }
                cells.add({"search": name, "k": k, "prompt": number, **both})
                with path.open("a") as file:
                    file.write(json.dumps(cells.rows[-1]) + "\n")
        return [row for row in cells.rows if row["k"] in ks and row["prompt"] < self.options.prompts]

    def recall(self, k: int, queries: int = 64) -> float:
        """Share of the true k neighbours that the approximate search finds, of hidden states from the first prompts."""
        exact, approximate = self.searches.values()
        asked = self._prompts(min(8, self.options.prompts))
        states = np.concatenate([hidden_states(self.engine, prompt) for prompt in asked])
        picked = states[:: max(1, len(states) // queries)][:queries]
        found = zip(exact(picked, k).entries, approximate(picked, k).entries, strict=True)
        return float(np.mean([len(np.intersect1d(one, other)) / k for one, other in found]))

    def description(self) -> dict[str, Any]:
        return {
            "model": "embedded",
            "entries": len(self.searches["exact"].store),
            "dimension": self.identity.dim,
            "keys": self.identity.key_type,
            "lists": self.options.lists,
            "probes": self.options.probes,
        }

    @cached_property
    def searches(self) -> dict[str, Any]:
        """Both ways to search. Hashes are checked when a service opens the store; here it has just been written."""
        store = Datastore(self.folder, read_manifest(self.folder))
        return {"exact": ExactSearch(store), "approximate": ListSearch(store, self.options.probes)}

    def _decode(self, prompt: list[int], search: Any, options: Any, new_tokens: int) -> dict[str, Any]:
        params = SamplingParams(max_tokens=new_tokens, ignore_eos=True)
        request = KnnRequest(search, options, experience=self._experiences.of((search, options)))
        [found], taken = timed(lambda: self.engine.generate([prompt], params, mixture=request))
        return {"s": taken, "ids": found.token_ids, "stats": found.stats["knn"]}

    def _prompts(self, count: int) -> list[list[int]]:
        found = []
        for _, text, held_out in self._documents():
            ids = encode(Encoder(self.engine.engine.tokenizer), text[: 40 * PROMPT_TOKENS])
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
        names = {
            blake2b(str(file).encode(), digest_size=8).hexdigest(): file for file in knowledge_base.files(self._texts)
        }
        for name, file in sorted(names.items()):
            text = "\n\n".join(knowledge_base.prose(file))[:LONGEST_TEXT]
            digest = blake2b(text.encode(), digest_size=8).digest()
            if len(text) < SHORTEST_TEXT or digest in seen or sum(map(str.isalpha, text)) < LETTERS * len(text):
                continue
            seen.add(digest)
            yield (name, 1), text, int(name, 16) % HELD_OUT == 0


def summaries(rows: Sequence[Row]) -> list[Row]:
    """One line a search and k."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["search"], row["k"]), []).append(row)
    return [_summary(name, k, group) for (name, k), group in groups.items()]


def _summary(name: str, k: int, rows: Sequence[Row]) -> Row:
    one, other = [row["sequential"] for row in rows], [row["speculative"] for row in rows]

    def total(side: Sequence[Row], figure: str) -> float:
        return sum(each["stats"][figure] for each in side)

    all_s, ours_s = (sum(each["s"] for each in side) for side in (one, other))
    search_s, guessed, steps = total(one, "search_s"), total(other, "guessed"), total(other, "steps")
    return {
        "search": name,
        "k": k,
        "prompts": len(rows),
        "identical": sum(a["ids"] == b["ids"] for a, b in zip(one, other, strict=True)),
        "sequential_s": all_s,
        "speculative_s": ours_s,
        "speedup": all_s / ours_s,
        "speedup_median": ratio([each["s"] for each in one], [each["s"] for each in other]),
        "retrieval_share": search_s / all_s,
        "amdahl_ceiling": all_s / (all_s - search_s),
        "sequential_search_ms": 1e3 * search_s / total(one, "lookups"),
        "batched_search_ms_per_query": 1e3 * total(other, "search_s") / total(other, "lookups"),
        "model_ms_per_step": 1e3 * total(other, "model_s") / steps,
        "cache_ms_per_step": 1e3 * total(other, "cache_s") / steps,
        "acceptance": total(other, "matched") / guessed if guessed else None,
        "mean_stride": steps / total(other, "rounds"),
    }


command = bench(Options, run, "knn")
