"""PEARL (arXiv 2408.11850): draft on while the target verifies.

After a tree is proposed a worker thread lets the draft model go on below it, as if all of it were accepted.
If the target agrees up to a node that was run, the next round starts from there at no cost; else the work is
lost and the round is as it would have been. It pays only where the draft model has cores or a stream of its
own.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from threading import Event

from drafters.base import Drafter, RequestState, TopSuccessors
from drafters.models.draft_model import ModelDrafter
from drafters.tree import DraftTree
from drafters.verify import Verdict


class Overlap(Drafter):
    """The drafter `overlap`: a model drafter with a worker; one request.

    The inner drafter is touched by one thread at a time: the worker is joined before any other call.
    """

    name = "overlap"

    def __init__(self, inner: ModelDrafter) -> None:
        self._inner = inner
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="overlap")
        self._work: Future[None] | None = None
        self._stop = Event()
        self.needs_topk = inner.needs_topk

    @property
    def ready(self) -> bool:
        return self._inner.ready

    def start(self, state: RequestState) -> None:
        self._inner.start(state)

    def propose(self, state: RequestState, budget: int) -> DraftTree:
        self._join()
        tree = self._inner.propose(state, budget)
        self._stop.clear()
        frozen = replace(state, tokens=list(state.tokens))
        self._work = self._worker.submit(self._inner.ahead, frozen, 2 * budget, self._stop.is_set)
        return tree

    def observe(self, state: RequestState, tree: DraftTree, verdict: Verdict, top: TopSuccessors | None) -> None:
        self._join()
        self._inner.observe(state, tree, verdict, top)

    def finish(self, state: RequestState) -> None:
        try:
            self._join()
        finally:
            self._worker.shutdown()
            self._inner.finish(state)

    def _join(self) -> None:
        """Stop the worker after its current forward; its exception, if any, is raised here."""
        work, self._work = self._work, None
        if work is not None:
            self._stop.set()
            work.result()
