"""The names of the policies that come with the package, for whoever checks one before torch is there."""

from __future__ import annotations

NAMES = (
    "dense",
    "streaming",
    "minference",
    "xattention",
    "flexprefill",
    "trianglemix",
    "lserve",
    "quest",
    "skip",
    "blend",
    "auto",
)
