"""How far a model drafter guesses, and whether it does at all: by what its last rounds brought.

RAPID and its like draft the same number of tokens in every round. An answer that the drafter does not share (it read
other chunks, or none that help) then costs all those forwards for each of its tokens. Here a draft is at most twice as
long as what was last accepted, and rounds are passed over, ever more of them, where drafting loses time.
"""

from __future__ import annotations

from drafters.base import RequestState
from drafters.machine_profile import MachineProfile

_LEAST = 2  # tokens of a draft after one of which nothing was accepted
_WEIGHT = 0.5  # of the newest round in the running mean
_LONGEST_REST = 32  # rounds


class Pace:
    """The pace of one request's draft model, whose longest path is `depth`.

    A round is judged by the seconds it saved: those that plain decoding takes for its tokens, by the machine's profile,
    less those of the draft and of its verification.
    """

    def __init__(self, profile: MachineProfile, depth: int) -> None:
        self._profile = profile
        self._most = depth
        self._rest = 0  # rounds still to be passed over
        self._pause = 0  # rounds of the last rest
        self._saved = 0.0  # seconds a round, running mean
        self.depth = depth
        """The longest path of the coming draft."""

    def asks(self) -> bool:
        """Whether to draft in the coming round; to be asked once a round."""
        if self._rest:
            self._rest -= 1
            return False
        return True

    def observe(self, state: RequestState, nodes: int, accepted: int, seconds: float) -> None:
        """A round that drafted: `accepted` of `nodes` were right, guessing them took `seconds`."""
        self.depth = min(self._most, 2 * accepted + _LEAST)
        if not self._profile.ready:
            return
        batch = state.batch_size  # whose requests draft one after the other
        times = self._profile.step_times(batch, len(state.tokens), nodes)
        saved = float((1 + accepted) * times[0] - times[nodes]) - batch * seconds
        self._saved += _WEIGHT * (saved - self._saved)
        losing = saved < 0 and self._saved < 0
        self._pause = min(max(1, 2 * self._pause), _LONGEST_REST) if losing else 0
        self._rest = self._pause
