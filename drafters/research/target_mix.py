"""RAPID's knowledge transfer (arXiv 2502.20330, section 3.3), as a lossy option that samples what it
declares.

The target is p_hat = softmax(z/T + eta (q - p)), entries under a tenth of its largest reverting to p,
renormalised. The paper samples its residual norm(max(p - p_hat, p - q, 0)) on a rejection and p for the bonus
token, which is neither p nor p_hat and depends on where blocks end. Here p_hat is a function of the text
alone and every token, the bonus token too, is its keyed choice: the output is plain decoding from p_hat,
whatever was drafted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drafters.base import RequestState
from drafters.models.best_first import BestFirst, Candidates
from drafters.models.rag import Rag
from drafters.options import RagOptions
from drafters.protocols import DraftModel
from drafters.sampling.choice import Sampling
from drafters.tree import DraftTree

REVERT_BELOW = 0.1


def mix(target: Tensor, draft: Tensor, temperature: float, eta: float) -> Tensor:
    """Logits whose softmax at `temperature` (1 where that is 0) is p_hat; both inputs and result [N, V],
    float64."""
    divisor = temperature if temperature > 0 else 1.0
    z = target.to(torch.float64) / divisor
    log_p = torch.log_softmax(z, dim=-1)
    q = torch.softmax(draft.to(torch.float64) / divisor, dim=-1)
    log_mixed = torch.log_softmax(z + eta * (q - log_p.exp()), dim=-1)
    low = log_mixed < log_mixed.amax(dim=-1, keepdim=True) + torch.log(torch.tensor(REVERT_BELOW))
    return torch.where(low, log_p, log_mixed) * divisor


class MixedRag(Rag):
    """The drafter `rag` with target_mix > 0: one branch, the draft model run on every row."""

    lossy = True

    def __init__(self, model: DraftModel, builder: BestFirst, options: RagOptions) -> None:
        super().__init__(model, builder, options)
        self._eta = options.target_mix
        self._length = options.depth
        self._rows: list[Tensor] = []

    def propose(self, state: RequestState, budget: int) -> DraftTree:
        """A chain; the draft logits of the root and of all its nodes are kept for `adjust`."""
        session = self._open_session()
        # the root is always run: its draft logits are part of the declared distribution
        self._rows = [self._root_logits(session, state)]
        tokens: list[int] = []
        for depth in range(min(self._length, budget)):
            best = self._best(state.sampling, state, depth)
            tokens.append(int(best.ids[0]))
            self._rows.append(session.extend([tokens[-1]], [depth - 1]))
            self._builder.session_children[(depth - 1, tokens[-1])] = depth
        return DraftTree.chain(tokens, source=self.name)

    def _best(self, sampling: Sampling, state: RequestState, depth: int) -> Candidates:
        return self._builder.candidates(self._rows[-1], state, [state.next_position + depth])[0]

    def adjust(self, state: RequestState, tree: DraftTree, logits: Tensor) -> Tensor:
        draft = torch.cat(self._rows[: len(tree) + 1]).to(logits.device)
        return mix(logits, draft, state.sampling.temperature, self._eta)
