"""Between the engine and the drafters: one drafter a request, proposals before a forward, lessons after it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from drafters import registry
from drafters.base import RequestState
from drafters.errors import DrafterError
from drafters.learned import LearnedByOwner
from drafters.protocols import DraftModel
from drafters.resources import Resources
from drafters.sampling.successors import top_successors
from drafters.stats import DraftingStats, token_sources
from drafters.tracked import TrackedDrafter
from drafters.tree import EMPTY
from drafters.verify import Verdict
from service.engine.config import EngineConfig
from service.engine.drafting.sessions import PagedDraftModel, SeparateDraftModel
from service.engine.options import parse_drafter
from service.engine.request import Request
from service.engine.step import Slice, Step
from service.errors import InvalidRequest


@dataclass
class _Drafted:
    drafter: TrackedDrafter
    state: RequestState
    budget: int
    started: bool = False


class Drafting:
    """The drafters of the running requests, and what they share; ``most_nodes`` is what a step and the pages hold."""

    def __init__(self, resources: Resources, config: EngineConfig, most_nodes: int) -> None:
        self.resources = resources
        self.learned = LearnedByOwner(config.learned_memory)
        self.default = config.drafter
        self.most_nodes = most_nodes
        self.totals = DraftingStats()
        self._requests: dict[str, _Drafted] = {}
        self._unready: list[Request] = []  # whose drafters have something to read first

    def open(self, request: Request, stops: frozenset[int]) -> None:
        """Give a request the drafter that it asks for; ``stops`` are the tokens that end its output.

        Raises:
            InvalidRequest: there is no such drafter or option, the engine lacks what it needs, or a larger tree is
                asked for than it has room for (a default is cut to what there is).
        """
        options = parse_drafter(request.params.drafter or self.default)
        sources = request.draft_sources
        try:
            drafter = registry.build(options, self._resources_of(request))
        except DrafterError as error:
            raise InvalidRequest(f"{error}.", param="drafter") from error
        if options.budget > self.most_nodes and options.budget != type(options)().budget:
            raise InvalidRequest(
                f"drafter {options}: a tree of {options.budget} nodes is larger than the {self.most_nodes} that "
                "this engine has room for.",
                hint="Ask for a smaller budget.",
                param="drafter",
            )
        answered = request.reading is None and request.mixture is None
        request.state_window = drafter.window if answered else 0
        request.draft_budget = 0 if options.name == "none" else options.budget
        state = RequestState(
            request_id=request.id,
            tokens=request.token_ids,
            prompt_length=request.prompt_len,
            sampling=request.params.sampling,
            documents=sources.documents,
            draft_prompt=sources.prompt,
            max_tokens=request.params.max_tokens,
            stops=stops,
        )
        self._requests[request.id] = _Drafted(drafter, state, request.draft_budget)

    def _resources_of(self, request: Request) -> Resources:
        """The engine's, with what the request brings and what its owner's requests have taught or read."""
        shared, owner = self.resources, request.prefix_owner
        return replace(
            shared,
            datastore=request.draft_sources.datastore or shared.datastore,
            learned=self.learned.of(request.params.owner),
            self_model=_of(shared.self_model, owner),
            draft_model=_of(shared.draft_model, owner),
        )

    def propose(self, part: Slice, batch_size: int) -> None:
        """Hang a tree below the pending token of a decoding slice that has room for one, and ask for the states that
        the drafter reads.

        Raises:
            DrafterError: a drafter failed without which the declared distribution cannot be sampled.
        """
        self._guess(part, batch_size)
        window = 0 if part.fills else part.request.state_window  # what is copied shows no states
        count = len(part.token_ids)
        if window and (layers := self._requests[part.request.id].drafter.layers):
            behind = part.request.num_pending - count  # tokens of the prompt that come after these
            part.layers = layers
            part.state_rows = part.num_rows if part.num_rows > count else max(0, min(count, window - behind))

    def read(self, part: Slice, path: Sequence[int], states: Tensor) -> None:
        """Hand the drafter the states [state_rows, layers, d] of a slice's tokens and of the accepted nodes."""
        drafted = self._requests[part.request.id]
        count, skipped = len(part.token_ids), part.num_rows - len(states)
        rows = [*range(skipped, count), *(count + node for node in path)]
        kept = states[[row - skipped for row in rows]]
        drafted.drafter.read(drafted.state, part.start + skipped, kept)

    def _guess(self, part: Slice, batch_size: int) -> None:
        if not part.samples:
            return
        drafted = self._requests[part.request.id]
        declares = drafted.started and drafted.drafter.lossy  # a distribution of its own, for every row, drafted or not
        if not (part.draft_budget or declares):
            return
        drafted.state.batch_size = batch_size
        if not drafted.started:
            drafted.started = True
            drafted.drafter.start(drafted.state)
            if not drafted.drafter.ready:
                self._unready.append(part.request)
                part.request.draft_budget = 0
                part.request.parked = drafted.drafter.lossy
                return
        tree = drafted.drafter.propose(drafted.state, part.draft_budget)
        part.tree = tree if len(tree) else None
        appended = drafted.drafter.append(drafted.state, tree)
        if len(appended):
            part.appended = appended
            part.mutual = self.resources.head is not None and self.resources.head.mutual

    def read_ahead(self, budget: int) -> None:
        """Let a draft model with pages of its own read prompts, at most so many rows of them."""
        model = self.resources.draft_model
        if isinstance(model, SeparateDraftModel):
            model.read_ahead(budget)

    def resume(self) -> None:
        """Let the drafters guess that have read what they had to; what waited for them runs again."""
        for request in [r for r in self._unready if self._requests[r.id].drafter.ready]:
            self._unready.remove(request)
            request.draft_budget = self._requests[request.id].budget
            request.parked = False

    @property
    def stuck(self) -> Request | None:
        """The youngest request that waits for its drafter, without which it cannot be decoded."""
        return next((request for request in reversed(self._unready) if request.parked), None)

    def adjust(self, part: Slice, logits: Tensor) -> Tensor:
        """The logits that the request's choices are made from; only a lossy drafter changes them."""
        drafted = self._requests[part.request.id]
        if not drafted.started or not drafted.drafter.lossy:
            return logits
        return drafted.drafter.adjust(drafted.state, part.tree or EMPTY, logits)

    def is_lossy(self, request: Request) -> bool:
        drafted = self._requests.get(request.id)
        return drafted is not None and drafted.drafter.lossy

    def is_plain(self, request: Request) -> bool:
        """Whether no drafter guesses for a request or reads what it brings."""
        drafted = self._requests[request.id]
        return not drafted.budget and not drafted.drafter.lossy

    def verify(self, part: Slice, logits: Tensor, keyed: Verdict, states: Tensor | None) -> Verdict:
        """The verdict of a drafter that has a rule of its own, or else the keyed one; states [state_rows, layers, d]
        end in those of the tree."""
        drafted = self._requests[part.request.id]
        if not drafted.started:
            return keyed
        tree = part.tree or EMPTY
        nodes = part.num_rows - len(part.token_ids)
        behind = states[-nodes - 1 :] if states is not None and nodes else None
        return drafted.drafter.verify(drafted.state, tree, logits, keyed, behind)

    def observe(self, part: Slice, verdict: Verdict, emitted: Sequence[int], logits: Tensor) -> list[str]:
        """Tell the drafter what came of the step; returns the source of each emitted token."""
        drafted = self._requests[part.request.id]
        tree = part.tree or EMPTY
        cut = Verdict(verdict.path, tuple(emitted))
        if drafted.started:
            began = time.perf_counter()
            wanted = drafted.drafter.needs_topk
            top = top_successors(logits, verdict.rows, wanted) if wanted else None
            drafted.drafter.stats.drafting_seconds += time.perf_counter() - began
            drafted.drafter.observe(drafted.state, tree, cut, top)
        return token_sources(tree, cut)

    def count_verifying(self, requests: Sequence[Request], seconds: float) -> None:
        """Put the time of a step's choices, walks and moved KV down to the requests that sampled in it, in equal
        shares."""
        for request in requests:
            self._requests[request.id].drafter.stats.verifying_seconds += seconds / len(requests)

    def record(self, step: Step, seconds: float) -> None:
        """Teach the machine profile the time of a step that decoded only, all that follows the guessing included."""
        if all(len(part.token_ids) == 1 for part in step.slices):
            rows = [part.num_rows for part in step.slices]
            self.resources.profile.record(rows, [part.start for part in step.slices], seconds)

    def close(self, request: Request) -> dict[str, Any]:
        """End the drafter of a request, wherever it is; returns its figures."""
        drafted = self._requests.pop(request.id, None)
        if request in self._unready:
            self._unready.remove(request)
        if drafted is None:
            return {}
        if drafted.started:
            drafted.drafter.finish(drafted.state)
        stats = drafted.drafter.stats
        self.totals.add(stats)
        return {"drafter": drafted.drafter.name, "drafting": stats.as_dict()}


def _of(model: DraftModel | None, owner: str | None) -> DraftModel | None:
    """A draft model as an owner may use it; one without pages keeps nothing that others could find."""
    return model.of(owner) if isinstance(model, PagedDraftModel) else model
