"""Errors of the packages below, as the errors that users see."""

from __future__ import annotations

from service import errors
from service.errors import FolioError


def translate(error: BaseException) -> FolioError | None:
    """The FolioError that says the same, or None for an error that nobody foresaw."""
    if isinstance(error, FolioError):
        return error
    from drafters.errors import DrafterError
    from retrieval import errors as retrieval
    from sparse_attn.errors import SparseAttentionError

    kinds: list[tuple[type[Exception], type[FolioError]]] = [
        (retrieval.NotFound, errors.NotFound),
        (retrieval.OversizedFile, errors.TooLarge),
        (retrieval.UnreadableFile, errors.UnsupportedFile),
        (retrieval.IndexCorrupt, errors.IndexStale),
        (retrieval.EmbedderMismatch, errors.IndexStale),
        (retrieval.DatastoreMismatch, errors.IndexStale),
        (retrieval.StoreUnavailable, errors.StoreUnavailable),
        (retrieval.StoreBusy, errors.StoreUnavailable),
        (retrieval.LeaseLost, errors.StoreUnavailable),
        (retrieval.Cancelled, errors.Conflict),
        (retrieval.RetrieverFailed, errors.Unavailable),
        (retrieval.RetrievalError, errors.InvalidRequest),
        (DrafterError, errors.InvalidRequest),
        (SparseAttentionError, errors.InvalidRequest),
    ]
    for theirs, ours in kinds:
        if isinstance(error, theirs):
            return ours(_sentence(str(error)))
    return None


def _sentence(message: str) -> str:
    message = message.strip()
    return f"{message[:1].upper()}{message[1:]}{'' if message.endswith(('.', '!', '?')) else '.'}"
