"""Named places where a test can kill the process, to prove that recovery works from exactly there.

``FOLIO_FAILPOINT=name`` ends the process (as kill -9 would: no clean-up, no flush) the first time that it
passes ``failpoint("name")``; ``name:3`` the third time. Unset, a failpoint costs one look at a variable.
"""

from __future__ import annotations

import os

_SPEC = os.environ.get("FOLIO_FAILPOINT", "")
_name, _, _count = _SPEC.partition(":")
_left = int(_count) if _count else 1

EXIT_CODE = 86


def failpoint(name: str) -> None:
    """End the process here if the environment says so."""
    global _left
    if _name != name:
        return
    _left -= 1
    if _left == 0:
        os._exit(EXIT_CODE)
