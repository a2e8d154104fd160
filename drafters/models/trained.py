"""A trained drafter at work: the target's states come in, a tree grown by its confidence goes out."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from drafters.base import Drafter, RequestState, TopSuccessors
from drafters.heads.head import LAST, Head
from drafters.models.best_first import BestFirst, Candidates
from drafters.models.pacing import Pace
from drafters.models.riding import Riders
from drafters.protocols import ShallowSession, SkippableModel
from drafters.training.online import Allowance, Notes, OnlineHead
from drafters.tree import EMPTY, DraftTree
from drafters.verify import Verdict


class Trained(Drafter):
    """The drafter `trained`; one request.

    Its nodes bear the head's name as their source. The head keeps no more of the text than its window. Where states of
    tokens are missing (the drafter came late), it begins anew behind them.
    """

    name = "trained"

    def __init__(
        self,
        head: Head,
        builder: BestFirst,
        depth: int,
        pace: Pace | None = None,
        target: SkippableModel | None = None,
    ) -> None:
        self._target = target  # whose first layers the head may want run
        self._head = head
        self._builder = builder
        self._pace = pace
        self._depth = min(depth, head.config.depth) if head.bounded else depth
        self._session = _Session(head)
        self.source = head.name  # of its nodes
        self._seconds: float | None = None  # that the last round's guesses took; None where it was passed over
        self.layers = head.config.reads
        self.window = head.config.window
        self.root: Candidates | None = None
        """The head's view of the coming token, as of the last `propose`."""
        self._online: tuple[OnlineHead, Allowance, float] | None = None
        self._notes = Notes()
        self._riders: Riders | None = None
        self._room = 0  # nodes and prompt tokens of the step

    def ride(self, riders: Riders) -> None:
        """Have the head's prompt tokens run in the verifications."""
        self._riders, self._session.shallow = riders, riders
        self.looks, self.appends = True, riders.depth

    def learn(self, online: OnlineHead, allowance: Allowance, share: float) -> None:
        """Have the owner's next version learn from the answer once it is finished, in this share of the engine's
        time."""
        self._online = online, allowance, share
        self.layers = (*self.layers, LAST)

    def prompt(self, state: RequestState) -> Sequence[int]:
        """What it must read before its first guess: nothing, the target reads for it."""
        return ()

    def start(self, state: RequestState) -> None:
        if self._head.exit and self._target is not None:
            self._session.shallow = self._target.attach(state.request_id)

    def finish(self, state: RequestState) -> None:
        if self._session.shallow is not None:
            self._session.shallow.close()
        if self._online is not None:
            online, allowance, share = self._online
            lesson = self._notes.lesson(state.tokens, self._head.config.depth + 2)
            if online.take(lesson, allowance.seconds(share)):
                allowance.spent()

    def read(self, start: int, states: Tensor) -> None:
        if self._online is not None:
            self._notes.read(start, states)
            states = states[:, :-1]
        self._session.read(start, states)

    @torch.inference_mode()
    def propose(self, state: RequestState, budget: int) -> DraftTree:
        self._seconds, self._room = None, budget + self.appends
        if budget < 1 or (self._pace is not None and not self._pace.asks()):
            return EMPTY
        began = time.perf_counter()
        reach = self._depth if self._riders is None else self._riders.reach(state)
        logits = self._session.follow(state.tokens) if reach else None
        if logits is None:
            return EMPTY
        self._builder.reset()
        self.root = self._builder.candidates(logits, state, [state.next_position])[0]
        depth = min(self._depth, reach, self._pace.depth if self._pace is not None else reach)
        tree = self._builder.build(self._session, self.root, state, budget, depth=depth)
        self._seconds = time.perf_counter() - began
        return tree

    def worth(self, state: RequestState, tree: DraftTree) -> int:
        return len(tree) if self._riders is None else self._riders.worth(state, tree, self._room)

    def append(self, state: RequestState, tree: DraftTree, room: int) -> DraftTree:
        return EMPTY if self._riders is None else self._riders.hang(state, tree, room)

    def look(self, tree: DraftTree, states: Tensor) -> None:
        if self._riders is not None:
            self._riders.look(states)

    def observe(self, state: RequestState, tree: DraftTree, verdict: Verdict, top: TopSuccessors | None) -> None:
        """Learn the pace; what was emitted comes with its states."""
        if self._riders is not None:
            self._riders.observe(state, tree, verdict)
        reached = verdict.path[-1] if verdict.path else -1
        if len(verdict.tokens) > len(verdict.path) and (tree.parents == reached).any():
            self._notes.miss(len(state.tokens) - 1)
        if self._pace is not None and self._seconds is not None:
            self._pace.observe(state, len(tree), len(verdict.path), self._seconds)


class _Session:
    """One text of a head: states that wait for their tokens, and the growing tree, as `BestFirst` sees it."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._ids = head.vocabulary if head.config.draft_vocab else None
        self._vocab_size = len(head.t2d)
        self.shallow: ShallowSession | None = None
        self._waiting = torch.empty(0, len(head.config.reads), head.hidden_size)  # of the tokens from `_next` on
        self._begin(0)

    def read(self, start: int, states: Tensor) -> None:
        """Keep the states of tokens from `start` on, of the last ones in the window; those of pairs that were read are
        known."""
        known = self._next + len(self._waiting)
        if start > known:
            self._begin(start)
            known = start
        self._waiting = torch.cat((self._waiting.to(states), states[known - start :]))
        if (behind := len(self._waiting) - self._head.config.window) > 0:
            waiting = self._waiting[behind:]
            self._begin(self._next + behind)
            self._waiting = waiting

    def _begin(self, first: int) -> None:
        """Forget the text, of which the first pair to come is `first`."""
        self._context = self._head.begin(self._through)
        self._root: Tensor | None = None  # logits below the last pair
        self._next = first  # pair that the context has not read
        self._waiting = self._waiting[:0]

    def follow(self, tokens: Sequence[int]) -> Tensor | None:
        """Read the pairs up to the root, tokens[-1]; the logits [1, V] behind it, None where states are missing."""
        count = len(tokens) - 1 - self._next
        if count == 0:
            if self._root is not None:
                self._context.drop()
            return self._root  # asked again after a step that was rolled back
        if len(self._waiting) < count:
            return None
        states, self._waiting = self._waiting[:count], self._waiting[count:]
        after = torch.tensor(tokens[self._next + 1 :], device=states.device)
        self._root = self._whole(self._context.follow(states.float(), after, self._next))
        self._next += count
        return self._root

    def _through(self, tokens: Tensor, parents: Sequence[int]) -> Tensor:
        """What the target's first layers make of nodes; the root is the first one, and drops the others."""
        if self.shallow is None:
            raise RuntimeError("used before start")
        if parents[0] < 0:
            self.shallow.rollback()
        return self.shallow.shallow(tokens.tolist(), parents, self._head.exit).float()

    def extend(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        """As `DraftSession.extend`."""
        ids = torch.tensor(tokens, device=self._head.t2d.device)
        return self._whole(self._context.expand(ids, list(parents)))

    def _whole(self, logits: Tensor) -> Tensor:
        """Logits [n, V] of the target's ids; those that the head cannot guess are impossible."""
        if self._ids is None:
            return logits
        return logits.new_full((len(logits), self._vocab_size), -torch.inf).index_copy_(1, self._ids, logits)
