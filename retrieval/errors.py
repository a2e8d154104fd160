"""What can go wrong in retrieval, each with a sentence a user can act on.

Every error is a ``RetrievalError`` (a ``ValueError``); the service maps classes to exit codes and HTTP statuses.
"""

from __future__ import annotations


class RetrievalError(ValueError):
    """Root of every error a user of this package can meet; ``str(error)`` names the input and the remedy."""


class InvalidRequest(RetrievalError):
    """An argument that cannot be served: an empty query, k < 1, an unknown mode."""


class NotFound(RetrievalError):
    """A document, collection or job that does not exist, or belongs to somebody else."""


class UnreadableFile(RetrievalError):
    """Root of the errors of one file; ingestion records it for that file and goes on with the others."""


class NoSuchFile(UnreadableFile):
    """Nothing that may be read stands at the path: no file, or a link out of the folder. No document is made of it."""


class NameTaken(UnreadableFile):
    """Another file of the same ingest has the name. No document is made of this one."""


class UnsupportedFile(UnreadableFile):
    """No parser for this content."""


class WronglyNamedFile(UnreadableFile):
    """The name says one type and the content is another."""


class EmptyFile(UnreadableFile):
    """No bytes, or no text in them."""


class EncryptedFile(UnreadableFile):
    """A password is needed."""


class DamagedFile(UnreadableFile):
    """Truncated or otherwise malformed."""


class OversizedFile(UnreadableFile):
    """Over a limit: bytes, pages, entries of an archive, expansion, text."""


class ParserLimit(UnreadableFile):
    """The parser ran out of the memory or time that it is allowed for one file."""


class StoreUnavailable(RetrievalError):
    """The database cannot be opened or is of a newer version."""


class DiskFull(StoreUnavailable):
    """The database has no space to write to."""


class StorageFull(RetrievalError):
    """An owner has stored as much as he may."""


class StoreBusy(RetrievalError):
    """Another process is writing."""


class LeaseLost(RetrievalError):
    """Another process took the write lease over while this one was at work; nothing was committed."""


class IndexCorrupt(RetrievalError):
    """A file of an index generation is missing, truncated or altered."""


class DatastoreMismatch(RetrievalError):
    """A datastore of another model, tokenizer or state of the documents than the one it is asked to serve."""


class EmbedderMismatch(RetrievalError):
    """The library was embedded by another model than the one it was opened with."""


class UnknownEmbedder(RetrievalError):
    """The embedding model cannot be found or is not what it claims to be."""


class UnknownRanker(RetrievalError):
    """The ranker cannot be found or is not what it claims to be."""


class RetrieverFailed(RetrievalError):
    """A search that failed or took too long, and did so again."""


class ArchiveError(RetrievalError):
    """An archive of a collection that cannot be imported."""


class Cancelled(RetrievalError):
    """The caller asked for the work to stop."""
