"""``python -m service.engine.runner.follower SIZE DEVICE``: a rank that `ranks` starts beside rank 0."""

from __future__ import annotations

import sys

from transformers.utils.logging import disable_progress_bar

from service.engine.runner.ranks import run_ranks
from service.engine.runner.tensor_parallel import follow


def main() -> int:
    """Follow rank 0 to its end."""
    disable_progress_bar()  # rank 0 shows its own
    size, device = int(sys.argv[1]), sys.argv[2]
    return run_ranks(size, device, lambda: 2, follow)


if __name__ == "__main__":
    sys.exit(main())
