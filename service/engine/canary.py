"""Lossy answers held to exact ones: of those under a lossy attention policy a share is read again, densely.

What is read is the answer itself behind its prompt, when the engine has nothing else to do. At each of its tokens the
exact model says what it would have chosen there; the first place where that is another token is where its own answer
would have parted. A policy of which too few tokens are the exact model's is withdrawn until somebody takes it back,
from the owner whose answers they were: nobody takes it from others by what he asks, nor hears of their answers.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
import torch
from torch import Tensor

from drafters.tree import EMPTY
from drafters.verify import NO_TOKEN
from service.engine.finish import FinishReason
from service.engine.params import SamplingParams
from service.engine.request import Priority, Reading, Request
from service.engine.sampling.sampler import RowKeys, sample
from service.engine.scheduler import Scheduler
from service.errors import InvalidRequest

log = structlog.get_logger(__name__)

WINDOW = 50
"""Answers of a policy that its agreement is taken over, the last ones."""
LEAST = 20
"""Answers without which nothing is withdrawn."""
WAITING = 8
"""Answers that wait to be compared; the oldest gives way."""
POLICIES = 32
"""Of one owner, who may name any; the one compared the longest ago is forgotten."""
ROWS = 64
"""Rows whose logits are held at once."""


@dataclass
class Compared:
    """What came of the answers of one policy, of one owner or of all.

    Attributes:
        answers: compared. same: those that exact decoding gives to the last token.
        tokens: of all of them. agreeing: those that the exact model would have chosen.
        regret: nats by which the exact model's own choices were likelier to it, over all tokens.
        parted: where the last answers parted from exact ones, in tokens.
        last: agreeing and all tokens of the last answers.
        withdrawn: the agreement at which the policy was withdrawn; None while it is in use.
    """

    answers: int = 0
    same: int = 0
    tokens: int = 0
    agreeing: int = 0
    regret: float = 0.0
    parted: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))
    last: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    withdrawn: float | None = None

    @property
    def agreement(self) -> float:
        """Share of the tokens of the last answers that the exact model would have chosen."""
        last = list(self.last)  # at once: statistics are read from other threads
        return sum(own for own, _ in last) / max(1, sum(every for _, every in last))

    def add(self, agrees: Sequence[bool], regret: float) -> None:
        self.answers += 1
        self.same += all(agrees)
        self.tokens += len(agrees)
        self.agreeing += sum(agrees)
        self.regret += regret
        self.last.append((sum(agrees), len(agrees)))
        if not all(agrees):
            self.parted.append(list(agrees).index(False))

    @classmethod
    def together(cls, each: Iterable[Compared]) -> Compared:
        """Of several owners, the last answers of each."""
        whole = cls(parted=deque(), last=deque())
        for one in each:
            whole.answers += one.answers
            whole.same += one.same
            whole.tokens += one.tokens
            whole.agreeing += one.agreeing
            whole.regret += one.regret
            whole.parted.extend(one.parted)
            whole.last.extend(one.last)
            if one.withdrawn is not None:
                whole.withdrawn = min(one.withdrawn, whole.withdrawn or 1.0)
        return whole

    def figures(self) -> dict[str, Any]:
        """As statistics show them."""
        parted = sorted(self.parted)
        return {
            "answers": self.answers,
            "same_answers": self.same,
            "tokens": self.tokens,
            "agreeing_tokens": self.agreeing,
            "agreement": self.agreement,
            "regret_nats": self.regret,
            "first_difference_median": parted[len(parted) // 2] if parted else None,
            "withdrawn": self.withdrawn is not None,
        }


@dataclass
class _Answer:
    policy: str
    token_ids: list[int]
    prompt_len: int
    params: SamplingParams


class Canary:
    """Of one engine.

    Attributes:
        skipped: answers that were to be compared, but gave way to newer ones or could not be read.
    """

    def __init__(self, share: float, bound: float, scheduler: Scheduler, logits_of: Callable[[Tensor], Tensor]) -> None:
        """
        Args:
            share: of lossy answers that are compared, 0 to 1; each policy's every so manieth.
            bound: the agreement below which a policy is withdrawn.
            logits_of: hidden states [n, d] to logits [n, V].
        """
        self.share = share
        self.bound = bound
        self.skipped = 0
        self._compared: dict[str, OrderedDict[str, Compared]] = {}
        """By owner, then by the name of a policy with all its options."""
        self._scheduler = scheduler
        self._logits_of = logits_of
        self._due: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._waiting: deque[_Answer] = deque()
        self._reading: Request | None = None

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._reading)

    @property
    def compared(self) -> dict[str, Compared]:
        """By the name of a policy with all its options, of all owners together. For any thread."""
        found: dict[str, list[Compared]] = {}
        for own in list(self._compared.values()):
            for policy, one in list(own.items()):
                found.setdefault(policy, []).append(one)
        return {policy: Compared.together(each) for policy, each in found.items()}

    def check(self, policy: str, owner: str) -> None:
        """Refuse a policy that was withdrawn from its owner. Raises InvalidRequest."""
        agreement = self._withdrawn(policy, owner)
        if agreement is not None:
            raise InvalidRequest(
                f"The attention policy {policy} was withdrawn: the exact model would have chosen {agreement:.1%} of "
                f"the tokens of its last answers, less than {self.bound:.1%}.",
                hint="Ask without it, or take it back: DELETE /v1/canary.",
                param="attention",
            )

    def is_withdrawn(self, policy: str, owner: str) -> bool:
        return self._withdrawn(policy, owner) is not None

    def _withdrawn(self, policy: str, owner: str) -> float | None:
        theirs = self._compared.get(owner)
        found = theirs.get(policy) if theirs is not None else None
        return None if found is None else found.withdrawn

    def reset(self) -> list[str]:
        """Take back all policies that were withdrawn, and forget what was compared; returns their names."""
        back = [policy for policy, found in self.compared.items() if found.withdrawn is not None]
        self._compared.clear()
        return back

    def stop(self) -> None:
        """Compare nothing that is not compared yet."""
        self._waiting.clear()
        if self._reading is not None:
            self._scheduler.finish(self._reading, FinishReason.ABORT)
            self._reading = None

    def consider(self, request: Request) -> None:
        """Have an answer that has ended compared, if its policy is lossy and it is its turn.

        Not where something else than the model and its policy chose tokens: a mixture, a penalty, a constraint.
        """
        policy = request.lossy_policy
        if not self.share or policy is None or request.reading is not None or not request.num_output:
            return
        if request.mixture is not None or request.logits_processor is not None:
            return
        due = self._due.pop(key := (request.params.owner, policy), 0.0) + self.share
        self._due[key] = due % 1
        if len(self._due) > 100 * POLICIES:
            self._due.popitem(last=False)
        if due < 1:
            return
        self._waiting.append(_Answer(policy, request.token_ids, request.prompt_len, request.params))
        if len(self._waiting) > WAITING:
            self._waiting.popleft()
            self.skipped += 1

    def resume(self) -> None:
        """Begin, go on or pause: nothing is read while the engine has other work."""
        reading = self._reading
        if reading is not None and reading.finish_reason is not None:
            self.skipped += 1  # else `_judge` has taken it
            reading = self._reading = None
        others = len(self._scheduler.running) + len(self._scheduler.waiting) - (reading is not None)
        if reading is not None:
            reading.parked = others > 0
        elif self._waiting and not others:
            self._begin(self._waiting.popleft())

    def _begin(self, answer: _Answer) -> None:
        first = answer.prompt_len - 1  # the row behind which the first token was chosen
        hidden: list[Tensor] = []

        def take(start: int, chunk: Tensor) -> None:
            if start == 0:
                hidden.clear()
            hidden.append(chunk[max(0, first - start) :])

        def judge(_: Request) -> None:
            self._judge(answer, torch.cat(hidden))
            self._reading = None

        reading = Reading(on_chunk=take, on_read=judge, priority=Priority.BACKGROUND)
        self._reading = Request("canary", answer.token_ids[:-1], SamplingParams(), reading=reading)
        self._scheduler.add(self._reading)

    def _judge(self, answer: _Answer, hidden: Tensor) -> None:
        """Compare an answer with what the exact model chooses at each of its tokens; hidden [n, d]."""
        given = answer.token_ids[answer.prompt_len :]
        choices: list[int] = []
        regret = 0.0
        for start in range(0, len(given), ROWS):
            own = given[start : start + ROWS]
            logits = self._logits_of(hidden[start : start + len(own)])
            positions = [answer.prompt_len + start + i for i in range(len(own))]
            keys = RowKeys([answer.params] * len(own), [EMPTY] * len(own), positions)
            chosen = [verdict.tokens[0] for verdict in sample(logits, keys)]
            if NO_TOKEN in chosen:
                self.skipped += 1
                return
            likely = logits.double().log_softmax(-1).cpu()
            rows = torch.arange(len(own))
            regret += float((likely[rows, torch.tensor(chosen)] - likely[rows, torch.tensor(own)]).sum())
            choices += chosen
        theirs = self._compared.setdefault(answer.params.owner, OrderedDict())
        found = theirs.setdefault(answer.policy, Compared())
        theirs.move_to_end(answer.policy)
        if len(theirs) > POLICIES:
            theirs.popitem(last=False)
        found.add([one == other for one, other in zip(choices, given, strict=True)], regret)
        if found.withdrawn is None and len(found.last) >= LEAST and found.agreement < self.bound:
            found.withdrawn = found.agreement
            log.warning(
                "an attention policy is withdrawn: too few of its tokens are the exact model's",
                policy=answer.policy,
                agreement=round(found.agreement, 4),
                bound=self.bound,
                answers=len(found.last),
            )
