"""Named places where a test can kill the process, to prove that recovery works from exactly there.

``FOLIO_FAILPOINT=name`` ends the process (as kill -9 would: no clean-up, no flush) the first time that it
passes ``failpoint("name")``; ``name:3`` the third time. Unset, a failpoint costs one look at a variable.
"""

from __future__ import annotations

import os

EXIT_CODE = 86

_name = ""
_left = 0


def arm(spec: str) -> None:
    """Set the failpoint of this process, as the variable does at its start."""
    global _name, _left
    _name, _, count = spec.partition(":")
    _left = int(count or 1)


def failpoint(name: str) -> None:
    """End the process here if the environment says so."""
    global _left
    if _name != name:
        return
    _left -= 1
    if _left == 0:
        os._exit(EXIT_CODE)


arm(os.environ.get("FOLIO_FAILPOINT", ""))
