"""Long lists as JSON in slices.

The interpreter does nothing else while it reads or writes one JSON text: 600,000 headings at once are a second in which
a service answers nobody.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

SLICE = 10_000


def sliced(rows: Sequence[Any]) -> list[str]:
    """JSON texts of so many rows each."""
    return [json.dumps(rows[at : at + SLICE]) for at in range(0, len(rows), SLICE)]


def joined(texts: Iterable[str]) -> list[Any]:
    """The rows of such texts."""
    return [row for text in texts for row in json.loads(text)]
