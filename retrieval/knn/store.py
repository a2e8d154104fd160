"""The datastore of a kNN language model: for every token of some texts, the model's hidden state before it.

An entry is a key (the hidden state after reading a prefix) and a value (the token that follows it). Entries lie in the
order of the texts, so that the entries behind a hit are the ones that come next. Keys are memory-mapped.

Layout of a folder ``NAME``: ``keys.bin`` (bfloat16, float16 or float32 [n, d]), ``values.bin`` (int32 [n]),
``norms.bin`` (float32 [n], squared), where asked for the inverted lists of ``retrieval.knn.lists``, and
``manifest.json`` with the hash of each, written last. It is built in ``tmp-NAME``, which a build that was interrupted
goes on with, and renamed when it is whole.

Source: Khandelwal et al. 2020, "Generalization through Memorization: Nearest Neighbor Language Models", section 2.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from retrieval.common.failpoints import failpoint
from retrieval.common.files import check_hashes, in_words, replace_synced, sha256_of, sync_folder, write_synced
from retrieval.errors import DatastoreMismatch, IndexCorrupt, InvalidRequest, NotFound, StoreBusy
from retrieval.knn.lists import write_lists
from retrieval.knn.storage import STORAGE, blocks, packed, squared_norms, unpacked
from retrieval.types import DocumentKey

FORMAT = 1
MANIFEST = "manifest.json"
PROGRESS = "progress.json"
REBUILD = "build it anew with `folio index build --knn`"
_COMMIT_EVERY = 1 << 15


@dataclass(frozen=True)
class StoreIdentity:
    """What the entries of a datastore depend on besides the texts.

    Attributes:
        model: fingerprint of the weights; ``dim`` the width of its hidden states.
        tokenizer: fingerprint of the vocabulary, of ``vocab_size`` ids.
        key_type: of ``STORAGE``. A key is what is kept: distances are those to the rounded keys.
        window, overlap: tokens read at once, and how many of them only as context of the rest.
    """

    model: str
    tokenizer: str
    dim: int
    vocab_size: int
    key_type: str = "bfloat16"
    window: int = 512
    overlap: int = 64

    def __post_init__(self) -> None:
        if self.key_type not in STORAGE:
            raise InvalidRequest(f"keys are kept as {', '.join(STORAGE)}, not {self.key_type!r}")
        if not 0 <= self.overlap < self.window:
            raise InvalidRequest(f"a window of {self.window} tokens cannot have {self.overlap} as context alone")

    @property
    def storage(self) -> np.dtype[Any]:
        return STORAGE[self.key_type]


@dataclass
class _Progress:
    """What of an unfinished datastore is on the disk. ``documents``: id, version, first entry, tokens read."""

    identity: dict[str, Any]
    entries: int = 0
    documents: list[list[Any]] = field(default_factory=list)


class StoreBuilder:
    """Writes one datastore; go on with the same folder after an interruption of any kind."""

    def __init__(self, folder: Path, identity: StoreIdentity) -> None:
        """folder: what the finished datastore will be called. Error: StoreBusy, where it is being built already."""
        self.folder = folder
        self.identity = identity
        self.work = folder.with_name(f"tmp-{folder.name}")
        self._turn = self._take_turn()
        self._progress = self._resume()
        self._keys = self._open("keys.bin", identity.dim * identity.storage.itemsize)
        self._values = self._open("values.bin", 4)
        self._uncommitted = 0

    @property
    def entries(self) -> int:
        return self._progress.entries

    def tokens_read(self, document: DocumentKey) -> int:
        """How many tokens of a document are entries already (its last token never is one)."""
        return sum(int(d[3]) for d in self._progress.documents if (d[0], d[1]) == document)

    def add(self, document: DocumentKey, keys: np.ndarray, values: np.ndarray) -> None:
        """The next entries of a document: float[m, d] and int[m]. Documents are added one after another."""
        documents = self._progress.documents
        if not documents or (documents[-1][0], documents[-1][1]) != document:
            documents.append([*document, self._progress.entries, 0])
        with in_words():
            self._keys.write(packed(keys, self.identity.key_type).tobytes())
            self._values.write(np.asarray(values, dtype="<i4").tobytes())
        documents[-1][3] += len(values)
        self._progress.entries += len(values)
        self._uncommitted += len(values)
        if self._uncommitted >= _COMMIT_EVERY:
            self.commit()

    def commit(self) -> None:
        """Put what was added on the disk; a later build goes on from here."""
        with in_words():
            for file in (self._keys, self._values):
                file.flush()
                os.fsync(file.fileno())
            failpoint("knn.data")
            replace_synced(self.work / PROGRESS, json.dumps(asdict(self._progress)).encode())
        self._uncommitted = 0

    def finish(self, lists: int = 0) -> Path:
        """Complete the datastore, with ``lists`` inverted lists for approximate search (0: none); returns its folder.

        Raises:
            InvalidRequest: it has no entries, or fewer than lists.
        """
        if not self.entries:
            raise InvalidRequest("there is no text to make a datastore of; ingest documents first")
        if lists > self.entries:
            raise InvalidRequest(f"{self.entries} entries cannot be parted in {lists} lists; ask for fewer")
        self.commit()
        self._keys.close()
        self._values.close()
        shape = (self.entries, self.identity.dim)
        keys = np.memmap(self.work / "keys.bin", self.identity.storage, "c", shape=shape)
        with in_words():
            norms = np.concatenate([squared_norms(block) for block in blocks(keys, self.identity.key_type)])
            write_synced(self.work / "norms.bin", lambda sink: sink(norms.tobytes()))
            if lists:
                write_lists(self.work, keys, self.identity.key_type, lists)
            self._write_manifest(lists)
            failpoint("knn.written")
            if self.folder.exists():
                shutil.rmtree(self.folder)
            os.rename(self.work, self.folder)
            sync_folder(self.folder.parent)
        self.close()
        return self.folder

    def close(self) -> None:
        """Close the files; what was not committed is written again by the next build."""
        for file in (self._keys, self._values, self._turn):
            file.close()

    def _take_turn(self) -> BinaryIO:
        """An open file that this process alone has locked; the lock ends with the process, however it ends."""
        with in_words():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            file = self.folder.with_name(f".{self.folder.name}.lock").open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise StoreBusy(
                f"the datastore {self.folder.name} is being built by another process; wait for it"
            ) from error
        return file

    def _write_manifest(self, lists: int) -> None:
        (self.work / PROGRESS).unlink()
        names = sorted(path.name for path in self.work.iterdir() if path.name != MANIFEST)
        manifest = {
            "format": FORMAT,
            "identity": asdict(self.identity),
            "entries": self.entries,
            "lists": lists,
            "documents": [document[:3] for document in self._progress.documents],
            "files": {
                name: {"sha256": sha256_of(self.work / name), "bytes": (self.work / name).stat().st_size}
                for name in names
            },
        }
        write_synced(self.work / MANIFEST, lambda sink: sink(json.dumps(manifest, indent=1).encode()))
        sync_folder(self.work)

    def _resume(self) -> _Progress:
        """What an earlier build of the same identity left; else begin anew."""
        try:
            found = _Progress(**json.loads((self.work / PROGRESS).read_bytes()))
            if found.identity == asdict(self.identity):
                return found
        except (OSError, ValueError, TypeError):
            pass
        shutil.rmtree(self.work, ignore_errors=True)
        with in_words():
            self.work.mkdir(parents=True)
        return _Progress(asdict(self.identity))

    def _open(self, name: str, entry_bytes: int) -> BinaryIO:
        """For appending behind what was committed; what a crash left behind that is cut off."""
        with in_words():
            file = (self.work / name).open("ab")
            file.truncate(self._progress.entries * entry_bytes)
            return file


class Datastore:
    """A finished datastore, memory-mapped. It never changes and may be read by many threads."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.identity = StoreIdentity(**manifest["identity"])
        self.lists = int(manifest["lists"])
        self.documents: list[DocumentKey] = [(document, int(version)) for document, version, _ in manifest["documents"]]
        self.offsets = np.array([first for _, _, first in manifest["documents"]], dtype=np.int64)
        """int64[documents] the first entry of each"""
        entries = int(manifest["entries"])
        self.keys = self.array("keys.bin", self.identity.storage, (entries, self.identity.dim))
        """as they are kept; ``floats`` gives numbers"""
        self.values = self.array("values.bin", "int32", (entries,))
        self.norms = self.array("norms.bin", "float32", (entries,))

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def open(cls, folder: Path) -> Datastore:
        """Open after checking every hash. Errors: NotFound; IndexCorrupt, which names the file."""
        manifest = read_manifest(folder)
        try:
            check_hashes(folder, manifest["files"])
        except IndexCorrupt as error:
            raise IndexCorrupt(f"{error}; {REBUILD}") from error
        return cls(folder, manifest)

    def check_model(self, model: str, tokenizer: str, dim: int) -> None:
        """Refuse to serve another model than the one whose hidden states these are. Error: DatastoreMismatch."""
        own = self.identity
        for what, mine, theirs in (
            ("model", own.model, model),
            ("tokenizer", own.tokenizer, tokenizer),
            ("hidden size", own.dim, dim),
        ):
            if mine != theirs:
                raise DatastoreMismatch(
                    f"the datastore {self.folder.name} was made with the {what} {mine}, not {theirs}; {REBUILD}"
                )

    def array(self, name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
        """A file of the folder as an array that is not writable on disk. Error: IndexCorrupt."""
        try:
            # copy-on-write rather than read-only, which torch does not take without a warning
            return np.memmap(self.folder / name, dtype, "c", shape=shape).view(np.ndarray)
        except (OSError, ValueError) as error:
            raise IndexCorrupt(f"{self.folder / name} is not what its manifest says ({error}); {REBUILD}") from error

    def floats(self, rows: np.ndarray) -> np.ndarray:
        """float32[m, d]: the keys of int64[m] entries."""
        return unpacked(self.keys[rows], self.identity.key_type)

    def document_of(self, entries: np.ndarray) -> list[DocumentKey]:
        """The document that each of int64[m] entries is of."""
        return [self.documents[i] for i in np.searchsorted(self.offsets, entries, side="right") - 1]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Errors: NotFound, IndexCorrupt."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise NotFound(f"there is no datastore {folder.name}; build it with `folio index build --knn`") from error
    except (OSError, ValueError) as error:
        raise IndexCorrupt(f"{folder / MANIFEST} cannot be read; {REBUILD}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise IndexCorrupt(f"{folder} is not in the format {FORMAT} that this Folio reads; {REBUILD}")
    return manifest


def documents_of(folder: Path) -> set[str]:
    """Ids of the documents in a datastore, finished or not; none where that cannot be read."""
    for name in (MANIFEST, PROGRESS):
        try:
            return {document[0] for document in json.loads((folder / name).read_bytes())["documents"]}
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return set()


def windows(count: int, done: int, window: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """(first token read, first token kept, end) of each window over ``count`` tokens whose first ``done`` are kept."""
    while done < count:
        start = max(0, done - overlap)
        end = min(count, start + window)
        yield start, done, end
        done = end


def sweep(folder: Path, scope: str, keep: Sequence[str]) -> list[str]:
    """Remove the datastores of a scope (how their names begin) that are not kept; returns their names."""
    removed = []
    for path in sorted(folder.glob(f"{scope}-*")) + sorted(folder.glob(f"tmp-{scope}-*")):
        if path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path.name)
    return removed
