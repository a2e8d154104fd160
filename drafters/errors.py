"""Errors of this package that a user may see."""


class DrafterError(ValueError):
    """A drafter, an option of one, or a tree that cannot be used; the message names it and the remedy."""
