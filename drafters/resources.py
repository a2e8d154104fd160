"""What the drafters of one engine share, and what the engine lends them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from drafters.calibration import Calibration
from drafters.combine.auto import AcceptancePrior
from drafters.machine_profile import MachineProfile
from drafters.protocols import Datastore, DraftModel, SkippableModel, TextCodec
from drafters.research.layer_search import LayerSearch
from drafters.sources.recycling import SuccessorTable
from drafters.sources.suffix import DocumentAutomata


@dataclass
class Resources:
    """One per engine; a copy with another datastore (`dataclasses.replace`) shares all that is learned.

    tokenizer     names the target's tokenizer, as a datastore names its own; None: not known
    draft_model   another checkpoint; with `draft_codec` and `codec` its vocabulary may be another
    self_model    the target itself over a shorter prompt (`rag`, `cascade`)
    skippable     the target with layers skipped (`self_speculation`)
    datastore     continuations in the corpus that the request may see (`datastore`), in the ids of `tokenizer`
    calibration, profile, automata, acceptance and the successor tables learn from every request
    """

    vocab_size: int
    draft_model: DraftModel | None = None
    self_model: DraftModel | None = None
    skippable: SkippableModel | None = None
    datastore: Datastore | None = None
    tokenizer: str | None = None
    codec: TextCodec | None = None
    draft_codec: TextCodec | None = None
    calibration: Calibration = field(default_factory=Calibration)
    profile: MachineProfile = field(default_factory=MachineProfile)
    automata: DocumentAutomata = field(default_factory=DocumentAutomata)
    acceptance: AcceptancePrior = field(default_factory=AcceptancePrior)
    _successors: dict[int, SuccessorTable] = field(default_factory=dict)
    _searches: dict[int, LayerSearch] = field(default_factory=dict)

    def successors(self, ranks: int) -> SuccessorTable:
        """The engine's Token Recycling matrix of that many ranks."""
        if ranks not in self._successors:
            self._successors[ranks] = SuccessorTable(self.vocab_size, ranks)
        return self._successors[ranks]

    def layer_search(self, num_layers: int, ratio: float, every: int) -> LayerSearch:
        """The engine's search for the layers to skip; the first request's options hold."""
        if num_layers not in self._searches:
            self._searches[num_layers] = LayerSearch(num_layers, ratio, every)
        return self._searches[num_layers]

    def untaught(self) -> Resources:
        """A copy that knows nothing of texts; what was measured of the machine is shared."""
        return replace(
            self,
            calibration=Calibration(),
            automata=DocumentAutomata(),
            acceptance=AcceptancePrior(),
            _successors={},
            _searches={},
        )
