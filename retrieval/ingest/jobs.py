"""Ingest in the background: the upload is stored first, then acknowledged, then worked off by any worker.

A job is safe from the moment ``submit`` returns. A worker that is killed is succeeded by the next, which goes on
after the last file that was done.
"""

from __future__ import annotations

import datetime as dt
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from retrieval import errors
from retrieval.common.failpoints import failpoint
from retrieval.common.progress import CancelCheck
from retrieval.errors import Cancelled, LeaseLost, StoreBusy, UnreadableFile
from retrieval.index.upkeep import IndexUpkeep
from retrieval.ingest.ingestion import Ingester
from retrieval.ingest.sources import Source, clean_name, name_taken
from retrieval.ingest.unpacking import is_archive
from retrieval.store import jobs as store
from retrieval.store.blobs import Blobs
from retrieval.store.database import Database
from retrieval.store.documents import new_id
from retrieval.store.tables import now
from retrieval.store.usage import check_room
from retrieval.types import IngestResult, Job, Progress, ProgressCallback, Upload

log = structlog.get_logger(__name__)

POLL_S = 0.5
HEARTBEAT_S = 1.0
BUSY_RETRY_S = 2.0
RETRY_BASE_S = 2.0
UPLOAD_GRACE_S = 3600.0
TIDY_S = 3600.0
WORKERS = 2
"""Threads that work the queue off. One owner's files never hold all of them."""
WRITE_WAIT_S = 5.0
COMMIT_WAIT_S = 60.0
"""For others of this process who commit, or build the index."""


class JobQueue:
    """Background ingestion of one library: any number of submitters, any number of workers."""

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        upkeep: IndexUpkeep,
        ingester: Ingester,
        unpack: Callable[[Iterable[Source]], Iterator[Source]],
        tidy: Callable[[], None],
    ) -> None:
        """
        Args:
            unpack: replaces archives by what is in them.
            tidy: what else a worker clears away when it starts, and every hour.
        """
        self._unpack = unpack
        self._database = database
        self._blobs = blobs
        self._upkeep = upkeep
        self._ingester = ingester
        self._tidy = tidy
        self._tidied = -math.inf
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._workers: list[threading.Thread] = []
        self._turns: dict[str, float] = {}
        """When an owner's job was last taken."""
        self.on_ingested: Callable[[str, str, str], None] | None = None
        """Told of each document that a job of this process has committed: job, owner, document. Returns at once."""

    def submit(self, files: Sequence[Upload], collection: str, owner: str, most_bytes: float | None = None) -> Job:
        """Store the uploads and queue their ingest; both are on the disk when this returns.

        most_bytes: that the owner may have stored, these files included. Error: StorageFull.
        """
        job = new_id()
        named = [
            {"name": clean_name(upload.name), "file": str(number), "size": len(upload.data)}
            for number, upload in enumerate(files)
        ]
        with self._database.write() as connection:  # counted before they are stored, against uploads at the same time
            if most_bytes is not None:
                check_room(connection, owner, sum(len(upload.data) for upload in files), most_bytes)
            store.insert(connection, job, owner, "ingest", {"collection": collection, "files": named})
        try:
            for number, upload in enumerate(files):
                self._blobs.put(f"uploads/{job}/{number}", upload.data)
            failpoint("job.uploaded")
            with self._database.write() as connection:
                store.enqueue(connection, job)
        except BaseException:
            self._drop_uploads(job)
            with self._database.write() as connection:
                store.forget(connection, job)
            raise
        failpoint("job.queued")
        self._wake.set()
        return self.get(job, owner)

    def get(self, job: str, owner: str) -> Job:
        with self._database.read() as connection:
            return store.get(connection, owner, job)

    def listing(self, owner: str, limit: int) -> list[Job]:
        with self._database.read() as connection:
            return store.listing(connection, owner, limit)

    def cancel(self, job: str, owner: str) -> Job:
        with self._database.write() as connection:
            cancelled = store.request_cancel(connection, owner, job)
        if cancelled.status == store.CANCELLED:
            self._drop_uploads(job)
        return cancelled

    def retry(self, job: str, owner: str) -> Job:
        with self._database.write() as connection:
            queued = store.retry(connection, owner, job)
        self._wake.set()
        return queued

    # -- the worker

    def start_worker(self) -> None:
        """Work the queue off in threads of this process, until ``stop_worker``."""
        if not any(worker.is_alive() for worker in self._workers):
            self._stop.clear()
            self._workers = [
                threading.Thread(target=self._work, name=f"ingest-worker-{number}", daemon=True)
                for number in range(WORKERS)
            ]
            for worker in self._workers:
                worker.start()

    def stop_worker(self, timeout_s: float = 30.0) -> None:
        """Stop after the files in hand are given up or done; their jobs go on when a worker starts again."""
        self._stop.set()
        self._wake.set()
        deadline = time.monotonic() + timeout_s
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))

    def run_next(self, at_once: int | None = None) -> bool:
        """Work off one job that is due, in this thread; the owner's who had his turn the longest ago.

        at_once: jobs of one owner that this process works at together.
        Returns False where there is none.
        """
        me = store.holder()
        with self._database.write() as connection:
            row = store.claim(connection, me, at_once, self._turns)
        if row is None:
            return False
        self._turns[row.owner] = time.monotonic()
        try:
            self._run(row, me)
        except StoreBusy:  # somebody else is writing: not this job's fault
            with self._database.write() as connection:
                store.requeue(connection, row.id, BUSY_RETRY_S, row.attempts - 1, "others write to the library")
        except Exception as error:
            log.exception("job failed", job=row.id)
            self._give_back(row, _told(error))
        return True

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                if time.monotonic() - self._tidied >= TIDY_S:
                    self._tidied = time.monotonic()
                    self.sweep()
                    self._tidy()
                worked = self.run_next(at_once=WORKERS - 1)
            except Exception:  # a database that is away for a while must not end the worker
                log.exception("the worker could not take a job")
                worked = False
            if not worked:
                self._wake.wait(POLL_S)
                self._wake.clear()

    def _run(self, row: Any, me: str) -> None:
        beat = _Heartbeat(self._database, row.id, me, self._stop)
        done = len(row.results)
        try:
            files = row.payload["files"] if done else self._unpacked(row, beat)
        except Cancelled:
            self._stopped(row, me)
            return
        taken = {entry["name"] for entry in files[:done]}
        for entry in files[done:]:
            source = self._source(row.id, entry)
            if source.name in taken:
                source = Source(source.name, name_taken(source.name))
            taken.add(source.name)
            try:
                result = self._ingest_one(source, row.payload["collection"], row.owner, beat.report, beat.should_stop)
            except (Cancelled, LeaseLost):
                self._stopped(row, me)
                return
            failpoint("job.file_done")
            with self._database.write() as connection:
                store.add_result(connection, row.id, result)
            failpoint("job.result_noted")
            if self.on_ingested is not None and result.id is not None and result.chunks and not result.deduplicated:
                self.on_ingested(row.id, row.owner, result.id)
        self._finish(row, me)

    def _unpacked(self, row: Any, beat: _Heartbeat) -> list[dict[str, Any]]:
        """The job's files with the archives among them opened: what is in them are uploads of their own, from here on
        and whoever goes on with the job. Error: Cancelled."""
        files: list[dict[str, Any]] = row.payload["files"]
        if not any(is_archive(entry["name"]) and "member" not in entry for entry in files):
            return files
        opened: list[dict[str, Any]] = []
        for entry in files:
            if not is_archive(entry["name"]) or "member" in entry:
                opened.append(entry)
                continue
            for number, source in enumerate(self._unpack([self._source(row.id, entry)])):
                if beat.should_stop():
                    raise Cancelled("the job was cancelled, or its worker stopped")
                opened.append(self._keep_member(row.id, f"{entry['file']}.{number}", source))
        failpoint("job.unpacked")
        with self._database.write() as connection:
            store.replace_files(connection, row.id, opened)
        return opened

    def _keep_member(self, job: str, file: str, source: Source) -> dict[str, Any]:
        """A file of an archive as a file of the job."""
        entry = {"name": source.name, "file": file, "member": True, "size": 0}
        if isinstance(source.origin, UnreadableFile):
            return {**entry, "error": [type(source.origin).__name__, str(source.origin)]}
        self._blobs.put(f"uploads/{job}/{file}", data := source.read(self._ingester.limits))
        return {**entry, "size": len(data)}

    def _ingest_one(
        self, source: Source, collection: str, owner: str, progress: ProgressCallback, cancelled: CancelCheck
    ) -> IngestResult:
        """The right to write is held for the commit alone, and asked for before: nothing is read in vain."""
        started = time.perf_counter()
        self._upkeep.check_writable("ingesting", WRITE_WAIT_S)
        item = self._ingester.prepare(source, collection, owner, progress, cancelled)
        with self._upkeep.writing("ingesting", COMMIT_WAIT_S):
            result = self._ingester.keep(item, collection, owner)
        return replace(result, seconds=time.perf_counter() - started)

    def _stopped(self, row: Any, me: str) -> None:
        """Cancelled by the user, or stopped with the process."""
        with self._database.write() as connection:
            job = store.get(connection, row.owner, row.id)
            if job.cancel_requested:
                store.finish(connection, row.id, store.CANCELLED)
            else:
                store.requeue(connection, row.id, 0.0, row.attempts - 1, None)
        if job.cancel_requested:
            self._drop_uploads(row.id)

    def _finish(self, row: Any, me: str) -> None:
        with self._database.write() as connection:
            results = store.get(connection, row.owner, row.id).results
            failed = [result for result in results if result.status == "failed"]
            status = store.FAILED if len(failed) == len(results) else store.DONE
            store.finish(connection, row.id, status, "; ".join(result.error or "" for result in failed) or None)
        failpoint("job.finished")
        if status == store.DONE:
            self._drop_uploads(row.id)

    def _give_back(self, row: Any, error: str) -> None:
        with self._database.write() as connection:
            if row.attempts >= row.max_attempts:
                store.finish(connection, row.id, store.FAILED, error)
            else:
                store.requeue(connection, row.id, RETRY_BASE_S**row.attempts, row.attempts, error)

    def sweep(self) -> None:
        """Remove uploads that no unfinished job needs (a failed job can then no longer be tried again)."""
        with self._database.write() as connection:
            store.abandon(connection)
            store.give_up(connection, now() - dt.timedelta(seconds=UPLOAD_GRACE_S))
            needed = store.unfinished(connection)
        for name in self._blobs.names("uploads"):
            if name.split("/")[1] not in needed and self._blobs.age_s(name) > UPLOAD_GRACE_S:
                self._blobs.remove(name)

    def _source(self, job: str, entry: dict[str, Any]) -> Source:
        """The file of a job; one that is gone is refused by name, as any other that cannot be read."""
        name = f"uploads/{job}/{entry['file']}"
        if "error" in entry:
            kind, told = entry["error"]
            return Source(entry["name"], getattr(errors, kind)(told))
        try:
            return Source(entry["name"], self._blobs.get(name))
        except KeyError:
            return Source(entry["name"], Path(name))

    def _drop_uploads(self, job: str) -> None:
        for name in list(self._blobs.names(f"uploads/{job}")):
            self._blobs.remove(name)


def _told(error: Exception) -> str:
    """What the owner of a job is told of a failure: of one that nobody foresaw, or of the store, not where it lies."""
    own = isinstance(error, errors.RetrievalError) and not isinstance(error, errors.StoreUnavailable | StoreBusy)
    return str(error) if own else "something went wrong here; the log says what"


class _Heartbeat:
    """Keeps a job's lease, writes its progress, and learns of its cancellation, about once a second."""

    def __init__(self, database: Database, job: str, me: str, stop: threading.Event) -> None:
        self._database = database
        self._job = job
        self._me = me
        self._stop = stop
        self._last = 0.0
        self._progress: dict[str, Any] = {}
        self._cancelled = False

    def report(self, progress: Progress) -> None:
        self._progress = dict(progress.__dict__)

    def should_stop(self) -> bool:
        if self._stop.is_set():
            return True
        if not self._cancelled and time.monotonic() - self._last >= HEARTBEAT_S:
            self._last = time.monotonic()
            with self._database.write() as connection:
                self._cancelled = not store.heartbeat(connection, self._job, self._me, self._progress)
        return self._cancelled
