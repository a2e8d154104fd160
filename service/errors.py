"""Everything that can go wrong and that a user should read about, with what each front end makes of it.

An error is one clear sentence that names the input, and a remedy where there is one. REST turns it into
RFC 9457 problem+json (`status`, `problem`), the OpenAI routes into their error object (`openai_type`,
`param`), the command line into a line on stderr and an exit code. `translate` gives the errors of the packages below
their place among them.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, ClassVar


class Exit(IntEnum):
    """Exit codes of the `folio` command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    PARTIAL = 3
    STALE = 4
    INTERRUPTED = 130


class FolioError(Exception):
    """Root of all errors that users see.

    Args:
        message: one sentence that names the input and what is wrong with it.
        hint: what to do about it, also one sentence.
        param: the request field, option or setting at fault.
    """

    status: ClassVar[int] = 500
    problem: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Internal error"
    exit_code: ClassVar[Exit] = Exit.FAILED
    openai_type: ClassVar[str] = "server_error"
    openai_code: ClassVar[str | None] = None
    """where OpenAI has a word of its own, which clients look for; else that of `problem`"""

    def __init__(self, message: str, *, hint: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param

    @property
    def detail(self) -> str:
        """Message and remedy in one text."""
        if not self.hint:
            return self.message
        return f"{self.message}{'' if self.message.endswith(('.', '?', '!')) else '.'} {self.hint}"

    def as_problem(self) -> dict[str, Any]:
        """As problem+json (RFC 9457)."""
        body = {
            "type": f"urn:folio:problem:{self.problem}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        return body | ({"param": self.param} if self.param else {})


class InvalidRequest(FolioError):
    """A malformed or contradictory request, option or setting."""

    status = 400
    problem = "invalid-request"
    title = "Invalid request"
    exit_code = Exit.USAGE
    openai_type = "invalid_request_error"


class PromptTooLong(InvalidRequest):
    """A prompt that the model's window or the KV pool can never hold."""

    problem = "prompt-too-long"
    title = "Prompt too long"
    exit_code = Exit.FAILED
    openai_code = "context_length_exceeded"

    @classmethod
    def for_model(cls, most: int, asked: str, hint: str, param: str) -> PromptTooLong:
        """For a model that holds `most` tokens, in the words that clients look for."""
        return cls(f"This model's maximum context length is {most} tokens; {asked}.", hint=hint, param=param)


class ModelError(FolioError):
    """A model that cannot be found, read or run by the engine."""

    status = 400
    problem = "model-unusable"
    title = "Model unusable"
    openai_type = "invalid_request_error"


class Unauthorized(FolioError):
    """No API key, or one that is unknown or revoked."""

    status = 401
    problem = "unauthorized"
    title = "API key needed"
    openai_type = "authentication_error"


class Forbidden(FolioError):
    """A known key without the scope that the route asks for."""

    status = 403
    problem = "forbidden"
    title = "Not allowed"
    openai_type = "permission_error"


class NotFound(FolioError):
    """Nothing of that id here, or nothing that this key may see."""

    status = 404
    problem = "not-found"
    title = "Not found"
    openai_type = "not_found_error"


class MethodNotAllowed(FolioError):
    """A route that is there, and does not take this method."""

    status = 405
    problem = "method-not-allowed"
    title = "Method not allowed"
    openai_type = "invalid_request_error"


class Conflict(FolioError):
    """The request contradicts the present state, or a request still under way."""

    status = 409
    problem = "conflict"
    title = "Conflict"
    openai_type = "invalid_request_error"


class IndexStale(Conflict):
    """The index on disk does not match the database."""

    problem = "index-stale"
    title = "Index stale"
    exit_code = Exit.STALE


class TooLarge(FolioError):
    """A body, file or store over its limit."""

    status = 413
    problem = "too-large"
    title = "Too large"
    openai_type = "invalid_request_error"


class UnsupportedFile(FolioError):
    """A file of a kind, or in a state, that cannot be parsed."""

    status = 415
    problem = "unsupported-file"
    title = "Unsupported file"
    openai_type = "invalid_request_error"


class Unprocessable(FolioError):
    """Well-formed, but not to be acted on: the same idempotency key with another body."""

    status = 422
    problem = "unprocessable"
    title = "Unprocessable"
    openai_type = "invalid_request_error"


class Busy(FolioError):
    """A queue, rate or concurrency limit is reached; `retry_after` says when to come back, in seconds."""

    status = 429
    problem = "too-many-requests"
    title = "Too many requests"
    openai_type = "rate_limit_error"

    def __init__(
        self, message: str, *, retry_after: float = 1.0, hint: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, param=param)
        self.retry_after = retry_after


class GenerationFailed(FolioError):
    """The engine gave up on a request that it had accepted."""

    problem = "generation-failed"
    title = "Generation failed"


class Unavailable(FolioError):
    """The service is loading, draining, or a part of it is dead."""

    status = 503
    problem = "unavailable"
    title = "Unavailable"

    def __init__(
        self, message: str, *, retry_after: float = 5.0, hint: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, param=param)
        self.retry_after = retry_after


class StoreUnavailable(Unavailable):
    """The database or the data folder cannot be opened or written."""

    problem = "store-unavailable"
    title = "Store unavailable"


class DeviceLost(Unavailable):
    """The accelerator is in a state that this process cannot leave: it has to end."""

    problem = "device-lost"
    title = "Device lost"


class ReplicaLost(Unavailable):
    """The replica that was answering a request has ended."""

    problem = "replica-lost"
    title = "Replica lost"


class TimedOut(FolioError):
    """No first token, or no end, within the time allowed."""

    status = 504
    problem = "timed-out"
    title = "Timed out"
    openai_type = "timeout_error"


def translate(error: BaseException) -> FolioError | None:
    """The FolioError that says the same, or None for an error that nobody foresaw."""
    if isinstance(error, FolioError):
        return error
    from drafters.errors import DrafterError
    from retrieval import errors as retrieval
    from sparse_attn.errors import SparseAttentionError

    kinds: list[tuple[type[Exception], type[FolioError]]] = [
        (retrieval.NotFound, NotFound),
        (retrieval.OversizedFile, TooLarge),
        (retrieval.StorageFull, TooLarge),
        (retrieval.UnreadableFile, UnsupportedFile),
        (retrieval.IndexCorrupt, IndexStale),
        (retrieval.EmbedderMismatch, IndexStale),
        (retrieval.DatastoreMismatch, IndexStale),
        (retrieval.StoreUnavailable, StoreUnavailable),
        (retrieval.StoreBusy, StoreUnavailable),
        (retrieval.LeaseLost, StoreUnavailable),
        (retrieval.Cancelled, Conflict),
        (retrieval.RetrieverFailed, Unavailable),
        (retrieval.RetrievalError, InvalidRequest),
        (DrafterError, InvalidRequest),
        (SparseAttentionError, InvalidRequest),
    ]
    for theirs, ours in kinds:
        if isinstance(error, theirs):
            return ours(_sentence(str(error)))
    return None


def outward(error: BaseException) -> FolioError | None:
    """`translate` for whoever asks from elsewhere: where the database lies, and what ails it, is the operator's."""
    known = translate(error)
    if isinstance(known, StoreUnavailable):
        return StoreUnavailable("The documents cannot be reached at this moment.", hint="Try again; the log says why.")
    return known


def _sentence(message: str) -> str:
    message = message.strip()
    return f"{message[:1].upper()}{message[1:]}{'' if message.endswith(('.', '!', '?')) else '.'}"
