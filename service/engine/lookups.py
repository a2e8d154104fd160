"""Look-ups of mixtures (`service.engine.mixture`), run beside the steps."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from service.engine.request import Request

LOOKUPS = 4
"""look-ups at once: each has threads of its own"""


class Lookups:
    """The parked requests whose look-ups run, each in a worker thread."""

    def __init__(self) -> None:
        self._workers = ThreadPoolExecutor(LOOKUPS, thread_name_prefix="folio-look-up")
        self._running: dict[Future[None], Request] = {}

    def start(self, request: Request) -> None:
        assert request.mixture is not None
        self._running[self._workers.submit(request.mixture.look_up)] = request

    def __bool__(self) -> bool:
        return bool(self._running)

    def ended(self) -> list[tuple[Request, BaseException | None]]:
        """The requests whose look-ups are done, and what they raised; one that has ended meanwhile is forgotten."""
        done = [future for future in self._running if future.done()]
        found = [(self._running.pop(future), future.exception()) for future in done]
        return [(request, error) for request, error in found if request.finish_reason is None]

    def wait(self, seconds: float) -> None:
        """Until one is done, or so long at most; not at all where none runs."""
        wait(self._running, timeout=seconds, return_when=FIRST_COMPLETED)
