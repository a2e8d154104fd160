"""What the drafters have learned of texts, kept for each owner apart.

Which successors a token had, or how often guesses of a kind were right, tells of the texts that taught it: whoever
counts what is accepted of his own guesses could read there what another was answered. So nothing that one owner's
requests teach is used for another's. What is measured of the machine (`machine_profile`) is shared.
"""

from __future__ import annotations

from collections import OrderedDict

from drafters.calibration import Calibration
from drafters.combine.auto import AcceptancePrior
from drafters.heads.head import Head
from drafters.research.layer_search import LayerSearch
from drafters.sources.recycling import SuccessorTable
from drafters.sources.suffix import DocumentAutomata
from drafters.training.online import OnlineHead, Packing

_TABLES = 2
"""successor tables of an owner; he may ask for others, of which the one unused longest is forgotten"""


class Learned:
    """What one owner's requests have taught, for his next."""

    def __init__(self) -> None:
        self.calibration = Calibration()
        self.automata = DocumentAutomata()
        self.acceptance = AcceptancePrior()
        self._online: OnlineHead | None = None
        self._successors: OrderedDict[int, SuccessorTable] = OrderedDict()
        self._searches: dict[int, LayerSearch] = {}

    def successors(self, vocab_size: int, ranks: int) -> SuccessorTable:
        """The Token Recycling matrix of that many ranks."""
        if ranks not in self._successors:
            self._successors[ranks] = SuccessorTable(vocab_size, ranks)
        self._successors.move_to_end(ranks)
        if len(self._successors) > _TABLES:
            self._successors.popitem(last=False)
        return self._successors[ranks]

    def layer_search(self, num_layers: int, ratio: float, every: int) -> LayerSearch:
        """The search for the layers to skip; the first request's options hold."""
        if num_layers not in self._searches:
            self._searches[num_layers] = LayerSearch(num_layers, ratio, every)
        return self._searches[num_layers]

    def online(self, base: Head, packing: Packing | None) -> OnlineHead:
        """The owner's version of a trained drafter."""
        if self._online is None:
            self._online = OnlineHead(base, packing)
        return self._online

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays; all else is small."""
        tables = sum(table.nbytes for table in self._successors.values())
        if self._online is not None:
            tables += self._online.nbytes
        return self.calibration.nbytes + self.automata.nbytes + tables


class LearnedByOwner:
    """`Learned` of each owner: together at most ``max_bytes``, the owners who asked longest ago forgotten first.

    Counted when a request begins, so that what the newest owner learns, and what requests under way still use of one
    who was forgotten, may come on top.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._owners: OrderedDict[str, Learned] = OrderedDict()

    def __len__(self) -> int:
        return len(self._owners)

    def of(self, owner: str) -> Learned:
        """What this owner's requests have taught."""
        self._owners.setdefault(owner, Learned())
        self._owners.move_to_end(owner)
        while len(self._owners) > 1 and self.nbytes > self._max_bytes:
            self._owners.popitem(last=False)
        return self._owners[owner]

    def forget(self, owner: str) -> None:
        """What this owner's requests have taught is gone."""
        self._owners.pop(owner, None)

    @property
    def nbytes(self) -> int:
        return sum(learned.nbytes for learned in self._owners.values())
