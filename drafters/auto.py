"""The default: guess where guessing pays, never where it does not."""

from __future__ import annotations

from drafters.cascade import Together
from drafters.goodput import Goodput, MachineProfile


class Auto(Goodput):
    """The drafter `auto`: all free sources fused, cut by goodput to what pays at this batch and context."""

    name = "auto"

    def __init__(self, retrieval: Together, profile: MachineProfile) -> None:
        super().__init__(retrieval, profile)
