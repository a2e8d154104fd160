"""The errors of evaluation: each names the input at fault and what to do about it."""

from service.errors import FolioError


class EvalError(FolioError):
    """Something the user gave to an evaluation cannot be used."""
