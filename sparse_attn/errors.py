"""What sparse attention refuses, in words that name the input and the remedy."""

from __future__ import annotations


class SparseAttentionError(ValueError):
    """Root of every error this package raises about its input."""


class BlockIndexError(SparseAttentionError):
    """A block index that contradicts itself, its batch or its kernel."""


class PolicyError(SparseAttentionError):
    """A policy that does not exist, or that the model, the pages or its own numbers do not allow."""


class PatternFileError(SparseAttentionError):
    """A file of head patterns that cannot be read or belongs to another model."""


class UnknownInstructions(SparseAttentionError):
    """A family of a processor's instructions that was asked for and that the machine does not have."""


class UnsupportedModelFeature(SparseAttentionError):
    """The model asks of attention something that the paged kernels do not compute; the message names it."""
