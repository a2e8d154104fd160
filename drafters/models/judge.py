"""Judge Decoding (arXiv 2501.19309), lossy: a small module on the target's own states says whether a guess is right.

The state after a token that differs from the target's choice tells whether what it says is wrong, or merely said in
other words. A linear layer reads that off; it was trained (`training.judge`) on answers whose wrong parts are marked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from drafters.errors import DrafterError
from drafters.heads.folder import JUDGE
from drafters.heads.head import LAST, HeadConfig, check_fits, described
from drafters.models.lenient import Lenient
from drafters.protocols import Target
from drafters.tree import DraftTree


@dataclass(frozen=True)
class Judge:
    """A linear layer: weight float32 [hidden] and bias float32 [1]."""

    weight: Tensor
    bias: Tensor

    def right(self, states: Tensor) -> Tensor:
        """How likely tokens are right, [n], of the last layer's states [n, hidden] after them."""
        return (states.float() @ self.weight.to(states.device) + self.bias.to(states.device)).sigmoid()

    def save(self, folder: Path, target: Target) -> None:
        """Write it beside the drafter of a folder."""
        about = {"target": json.dumps(described(target))}
        save_file({"weight": self.weight, "bias": self.bias}, folder / JUDGE, about)


def load_judge(folder: str | Path, target: Target) -> Judge | None:
    """The judge in a drafter's folder; None where there is none. Raises DrafterError for one that is damaged, or was
    trained for another target."""
    file = Path(folder) / JUDGE
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as held:
            about = json.loads((held.metadata() or {})["target"])
            judge = Judge(held.get_tensor("weight"), held.get_tensor("bias"))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DrafterError(f"the judge in {file} is damaged: {error}") from error
    check_fits(HeadConfig("judge", (LAST,), 0, 0, target=about), target)
    return judge


class Judged(Lenient):
    """The drafter `trained` with judge > 0: what the judge finds right with that probability is kept."""

    name = "trained:judge"
    looks = True

    def __init__(self, *how: Any, judge: Judge, least: float) -> None:
        super().__init__(*how)
        self._judge, self._least = judge, least
        self._right: list[bool] = []
        self.layers = (*self.layers, LAST)

    def read(self, start: int, states: Tensor) -> None:
        super().read(start, states[:, :-1])

    def look(self, tree: DraftTree, states: Tensor) -> None:
        super().look(tree, states)
        self._right = (self._judge.right(states[1 : 1 + len(tree), -1]) > self._least).tolist()

    def keeps(self, log_p: Tensor, parents: Tensor, tokens: Tensor) -> Sequence[bool]:
        return self._right
