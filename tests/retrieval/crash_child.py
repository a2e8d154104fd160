"""What the crash tests run in a process of their own, and what they check of the home that it leaves behind.

Every operation is written to a log before it begins and again once it was acknowledged. After the process was
killed, the library must hold what was acknowledged; the one operation in hand may have happened or not.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import make_files
import numpy as np
from conftest import WordEmbedder

from retrieval.common import failpoints
from retrieval.library import Library
from retrieval.types import Upload


def content(name: str, seed: int) -> str:
    """Words that no other (name, seed) has."""
    return "\n\n".join(f"{name} {seed} speaks of w{seed}x{name}p{part} at length." for part in range(4))


class Log:
    def __init__(self, path: Path) -> None:
        self._file = path.open("a")

    def write(self, *entry: object) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()


def ingest(library: Library, log: Log, name: str, seed: int) -> str:
    log.write("begin", "ingest", name, seed)
    [result] = library.ingest([Upload(name, content(name, seed).encode())])
    assert result.status == "ready", result
    log.write("done", "ingest", name, seed)
    return str(result.id)


def delete(library: Library, log: Log, name: str) -> None:
    [found] = [document for document in library.documents() if document.name == name]
    log.write("begin", "delete", name, 0)
    library.delete(found.id)
    log.write("done", "delete", name, 0)


def scripted(home: str, url: str, log_path: str, spec: str) -> None:
    """Every kind of change once, with a failpoint armed after the first few documents."""
    log = Log(Path(log_path))
    library = Library.open(home, url, embedder=WordEmbedder())
    for seed, name in enumerate(["a.txt", "b.txt", "c.txt"]):
        ingest(library, log, name, seed)
    failpoints.arm(spec)
    ingest(library, log, "d.txt", 10)
    ingest(library, log, "a.txt", 11)
    delete(library, log, "b.txt")
    log.write("begin", "submit", "e.txt", 12)
    library.jobs.submit([Upload("e.txt", content("e.txt", 12).encode())], "default", "local")
    log.write("done", "submit", "e.txt", 12)
    library.jobs.run_next()
    log.write("begin", "submit", "f.zip/f.txt", 13)
    library.jobs.submit(
        [Upload("f.zip", make_files.archive({"f.txt": content("f.zip/f.txt", 13).encode()}))], "default", "local"
    )
    log.write("done", "submit", "f.zip/f.txt", 13)
    library.jobs.run_next()
    library.compact()
    library.close()
    Library.open(home, url, embedder=WordEmbedder(name="other")).rebuild()
    Library.open(home, url, embedder=WordEmbedder()).rebuild()
    os._exit(0)


def endless(home: str, url: str, log_path: str, seed: int) -> None:
    """Random changes until somebody kills the process."""
    rng = np.random.default_rng(seed)
    log = Log(Path(log_path))
    library = Library.open(home, url, embedder=WordEmbedder())
    log.write("ready")
    while True:
        names = [document.name for document in library.documents()]
        choice = rng.random()
        if choice < 0.25 and len(names) > 3:
            delete(library, log, str(rng.choice(names)))
        elif choice < 0.4:
            library.compact()
        else:
            ingest(library, log, f"n{rng.integers(12)}.txt", int(rng.integers(1 << 30)))


@dataclass
class Acknowledged:
    """What the log says must be there: name → seeds of which one must be the content (None: may be absent)."""

    documents: dict[str, set[int | None]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Acknowledged:
        known = cls()
        pending: list[object] | None = None
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if entry[0] == "begin":
                pending = entry
            elif entry[0] == "done":
                _, op, name, seed = entry
                known.documents[name] = {None} if op == "delete" else {seed}
                pending = None
            elif pending is not None:  # a new process: what the old one had in hand is undecided for good
                known._undecided(pending)
                pending = None
        if pending is not None:
            known._undecided(pending)
        return known

    def _undecided(self, entry: list[object]) -> None:
        _, op, name, seed = entry
        before = self.documents.get(str(name), {None})
        self.documents[str(name)] = before | ({None} if op == "delete" else {seed})  # type: ignore[arg-type]


def check(library: Library, acknowledged: Acknowledged) -> dict[str, str]:
    """Compare the library with the log; returns name → text of what is there."""
    while library.jobs.run_next():
        pass
    present = {found.name: library.text(found.id) for found in library.documents()}
    for name, seeds in acknowledged.documents.items():
        allowed = {content(name, seed) if seed is not None else None for seed in seeds}
        assert present.get(name) in allowed, (name, seeds, present.get(name))
        for seed in seeds - {None}:
            word = f"w{seed}x{name.removesuffix('.txt')}"
            hits = library.search(f"{name} {seed} {word}", k=3).hits
            found = any(hit.text and word in hit.text for hit in hits)
            assert found == (present.get(name) == content(name, seed)), (name, seed, hits)
    assert set(present) <= set(acknowledged.documents)
    report = library.verify_index()
    assert report.problems == [], report.problems
    assert report.live_chunks == report.indexed_chunks - report.tombstones + report.pending
    return present
