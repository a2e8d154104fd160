"""TiDAR (arXiv 2511.08923): a model that drafts by diffusion and talks autoregressively, in one forward.

Its rows of text are causal, and verify; the rows of a mask token fill a block at once: they see the text up to the
token that they stand behind, and one another both ways. A block rides below every token that the verification may end
at, as prompt tokens do. The model itself is trained for both (`training.tidar`): it is the target, and its drafter here
is the mask token. As in a causal model, a row guesses the token behind its place; the paper's guesses the one at it.
"""

from __future__ import annotations

from drafters.heads.head import member
from drafters.heads.ppd import Ppd


@member
class Tidar(Ppd):
    """Blocks of `depth` mask tokens. Trained alone, with a target that never learned of it, it is one more prompt
    token."""

    name = "tidar"
    mutual = True
    kinds = 1
