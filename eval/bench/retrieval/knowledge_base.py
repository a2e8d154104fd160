"""A knowledge base of real passages for benchmarks: windows over the documents that lie on a machine, embedded once.

Text comes from Markdown, reStructuredText and plain files, from the docstrings of Python sources and from the strings
of JSON lines. Passages and vectors are kept in a cache folder; embedding that was interrupted goes on where it ended.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from eval.errors import EvalError
from eval.figures import write_atomically

WORDS = 24
"""words of a passage: about 36 tokens of MiniLM"""
STEP = 16
"""words from one window to the next of the same text"""
MOST_OF_A_FILE = 1500
"""windows of one file, so that no book or change log fills the base"""
SLICE = 2048
BATCH = 128
SUFFIXES = (".md", ".rst", ".txt", ".py", ".jsonl")

_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class KnowledgeBase:
    """Passages and their vectors, row by row.

    Attributes:
        vectors: float32[n, d] of norm 1.
    """

    texts: list[str]
    vectors: np.ndarray


def default_folders() -> list[Path]:
    """Where documents lie on most machines: installed packages, the standard library, the system's documentation."""
    folders = [Path(sys.prefix), Path(sysconfig.get_paths()["stdlib"]), Path("/usr/share/doc")]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def cache_folder(name: str) -> Path:
    """A folder of that name in Folio's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "folio" / name


def knowledge_base(count: int, folders: Sequence[Path], cache: Path | None = None) -> KnowledgeBase:
    """``count`` different passages from the files below ``folders`` and the default ones; from the cache if possible.

    Raises:
        EvalError: there is too little text.
    """
    home = cache or cache_folder("ralm")
    listed = home / "passages.txt"
    if not listed.is_file():
        home.mkdir(parents=True, exist_ok=True)
        write_atomically(listed, "\n".join(collect([*folders, *default_folders()])))
    texts = listed.read_text(encoding="utf-8").split("\n")
    if len(texts) < count:
        raise EvalError(
            f"the folders hold {len(texts):,} different passages, {count:,} are wanted",
            hint=f"Name more folders with --text and remove {listed}, or ask for fewer --passages.",
        )
    return KnowledgeBase(texts[:count], embed(texts, count, home))


def collect(folders: Sequence[Path]) -> list[str]:
    """All different windows, over the files in a seeded random order."""
    passages: dict[bytes, str] = {}
    for file in files(folders):
        for passage in _windows(file):
            passages.setdefault(blake2b(passage.lower().encode(), digest_size=12).digest(), passage)
    return list(passages.values())


def embed(texts: Sequence[str], count: int, home: Path) -> np.ndarray:
    """float32[count, 384] of the first texts by MiniLM in bfloat16; what an earlier run embedded is kept."""
    import torch

    from retrieval.embedding.embedder import SentenceEmbedder

    path, done_path = home / "vectors.npy", home / "done.json"
    done = json.loads(done_path.read_text()) if done_path.is_file() and path.is_file() else 0
    model = SentenceEmbedder()
    vectors = open_memmap(path, "r+") if done else open_memmap(path, "w+", np.float32, (len(texts), model.dim))
    while done < count:
        part = texts[done : done + SLICE]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model.model_in_memory.encode(
                part, batch_size=BATCH, show_progress_bar=False, convert_to_tensor=True
            )
        vectors[done : done + len(part)] = torch.nn.functional.normalize(found.float(), dim=-1).numpy()
        vectors.flush()
        done += len(part)
        write_atomically(done_path, json.dumps(done))
        print(f"embedded {done:,} of {count:,} passages", file=sys.stderr)
    return vectors[:count]


def files(folders: Sequence[Path]) -> list[Path]:
    """The files with text below the folders, in a seeded random order."""
    found = sorted({file for folder in folders for file in _files(folder)})
    random.Random(0).shuffle(found)
    return found


def prose(file: Path) -> list[str]:
    """The parts of a file that are written for readers; none of one that is too large or cannot be read."""
    try:
        text = file.read_text(encoding="utf-8", errors="ignore") if file.stat().st_size < 8 << 20 else ""
    except OSError:
        return []
    return _prose(file.suffix, text)


def _files(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        for name in names:
            if name.endswith(SUFFIXES):
                yield Path(root, name)


def _windows(file: Path) -> Iterator[str]:
    """Windows of ``WORDS`` words that are mostly letters."""
    found = 0
    for part in prose(file):
        words = _WORD.findall(part)
        for at in range(0, max(1, len(words) - WORDS + STEP), STEP):
            passage = " ".join(words[at : at + WORDS])
            if 60 <= len(passage) <= 400 and sum(map(str.isalpha, passage)) > 0.7 * len(passage):
                yield passage
                found += 1
                if found == MOST_OF_A_FILE:
                    return


def _prose(suffix: str, text: str) -> list[str]:
    """The parts of a file that are written for readers."""
    if suffix == ".py":
        return text.split('"""')[1::2]
    if suffix == ".jsonl":
        return [string for line in text.splitlines() for string in _strings(line)]
    return [text]


def _strings(line: str) -> Iterator[str]:
    try:
        stack = [json.loads(line)]
    except ValueError:
        return
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list | dict):
            stack += value.values() if isinstance(value, dict) else value
