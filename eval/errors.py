"""The errors of evaluation: each names the input at fault and what to do about it."""

from service.errors import InvalidRequest


class EvalError(InvalidRequest):
    """Something given to an evaluation that it cannot use: a file, a task, an engine, an option."""
