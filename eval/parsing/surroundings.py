"""``folio eval parsing``: whether menus, headers and footers of real web pages and papers stand among the first hits.

The files are other people's and are not in this repository. They are read from clones of the public repositories that
hold them, at the commits that real_files.json names. It also has the questions, what an answer says, and phrases of
what stands around the content of each file.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from eval.errors import EvalError

FIRST = 5
"""hits of a question that are looked at"""


@dataclass(frozen=True)
class RealFile:
    """A file of a repository.

    Attributes:
        split: ``held out``, or ``development`` for files that were looked at when parsing was written.
        surroundings: phrases of its menus, headers and footers.
        questions: (question, words that a passage which answers it holds).
    """

    name: str
    repository: str
    commit: str
    path: str
    sha256: str
    split: str
    surroundings: list[str]
    questions: list[tuple[str, str]]


def real_files() -> list[RealFile]:
    told = json.loads(resources.files("eval.parsing").joinpath("real_files.json").read_text("utf-8"))
    return [
        RealFile(
            **told["repositories"][entry.pop("from")], **{**entry, "questions": list(map(tuple, entry["questions"]))}
        )
        for entry in told["files"]
    ]


def measure(clones: Sequence[Path], split: str) -> dict[str, Any]:
    """Figures of the files of a split. Error: EvalError where a file is in none of the clones."""
    from retrieval.library import Library
    from retrieval.types import Upload

    files = [file for file in real_files() if file.split == split]
    uploads = [Upload(file.name, _read(file, clones)) for file in files]
    with tempfile.TemporaryDirectory() as home, Library.open(home) as library:
        results = {result.name: result for result in library.ingest(uploads)}
        rows = [_of_file(library, file, results[file.name].id or "") for file in files]
    questions = [question for row in rows for question in row["questions"]]
    return {
        "split": split,
        "files": rows,
        "hits_with_surroundings": sum(len(question["surroundings"]) for question in questions),
        "hits": sum(question["hits"] for question in questions),
        "answered_first": sum(question["rank"] == 1 for question in questions),
        "answered": sum(question["rank"] is not None for question in questions),
        "asked": len(questions),
    }


def _of_file(library: Any, file: RealFile, document: str) -> dict[str, Any]:
    text = _plain(library.text(document))
    return {
        "name": file.name,
        "characters": len(text),
        "notes": library.document(document).notes,
        "surroundings_stored": [phrase for phrase in file.surroundings if phrase in text],
        "questions": [_of_question(library, file, *question) for question in file.questions],
    }


def _of_question(library: Any, file: RealFile, question: str, answer: str) -> dict[str, Any]:
    """Asked of all files: what is wanted is in one of them."""
    hits = library.search(question, k=FIRST).hits
    others = {other.name: other.surroundings for other in real_files()}
    shown = [(hit.name, _plain(f"{hit.context}\n{hit.text}")) for hit in hits]
    found = [phrase for name, text in shown for phrase in others[name] if phrase in text]
    ranks = [rank for rank, (name, text) in enumerate(shown, 1) if name == file.name and answer in text]
    return {"question": question, "rank": ranks[0] if ranks else None, "hits": len(hits), "surroundings": found}


def _read(file: RealFile, clones: Sequence[Path]) -> bytes:
    for clone in clones:
        read = subprocess.run(["git", "-C", clone, "show", f"{file.commit}:{file.path}"], capture_output=True)
        if read.returncode == 0 and hashlib.sha256(read.stdout).hexdigest() == file.sha256:
            return read.stdout
    raise EvalError(f"{file.name} is in none of the clones: git clone {file.repository}, which has {file.commit}")


def _plain(text: str) -> str:
    return " ".join(text.split())


def summary(figures: Mapping[str, Any]) -> str:
    """For people."""
    lines = [
        f"{row['name']}: {row['characters']} characters; stored of what surrounds them: "
        f"{', '.join(row['surroundings_stored']) or 'nothing'}"
        for row in figures["files"]
    ]
    return "\n".join(
        [
            *lines,
            f"{figures['hits_with_surroundings']} phrases of menus, headers, footers in {figures['hits']} first hits; "
            f"{figures['answered_first']} of {figures['asked']} answers in the first hit, "
            f"{figures['answered']} in the first {FIRST}",
        ]
    )
