"""EasySpec (arXiv 2502.02493): the layers of a draft model run beside one another on several ranks.

As many consecutive layers as there are ranks form a group. When drafting, the attentions of a group all read what
entered the group, each on the rank that has its layer; what they give is gathered and goes through the layers' MLPs in
turn (*fuzzy*: the second attention misses what the first layer would have added). Afterwards one pass over the tokens
that were accepted, layer by layer, puts the KV right (*calibration*), so that errors do not add up.

Rank 0 holds the session and drafts with it, as with any `DraftSession`; the others follow. Embeddings, MLPs and output
matrix are every rank's, an attention and its KV the one's that has the layer. Trees are chains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from drafters.errors import DrafterError
from drafters.models.draft_model import ModelDrafter

_EXACT, _FUZZY, _CUT, _END = range(4)  # what rank 0 tells the others to do

Gather = Callable[[Tensor], list[Tensor]]
"""Makes of each rank's tensor all of them, on every rank."""
Tell = Callable[[Tensor], Tensor]
"""Makes of each rank's tensor that of rank 0."""


def gathered(tensor: Tensor) -> list[Tensor]:
    """`Gather` by `torch.distributed`."""
    found = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(found, tensor.contiguous())
    return found


def told(tensor: Tensor) -> Tensor:
    """`Tell` by `torch.distributed`."""
    dist.broadcast(tensor, 0)
    return tensor


class LayerParallel:
    """One rank's part of a Llama-like draft model.

    Raises:
        DrafterError: its layers make no whole groups.
    """

    def __init__(self, model: Any, rank: int, ranks: int, gather: Gather = gathered, tell: Tell = told) -> None:
        self._body, self._head = model.model, model.lm_head
        self.vocab_size = int(model.config.vocab_size)
        self._rank, self._ranks, self._gather, self._tell = rank, ranks, gather, tell
        if len(self._body.layers) % ranks:
            raise DrafterError(f"{len(self._body.layers)} layers make no groups of {ranks}: take another draft model")
        self._kv: dict[int, tuple[Tensor, Tensor]] = {}  # of this rank's layers, each [1, kv_heads, n, size]
        self._length = 0

    def open(self, token_ids: Sequence[int]) -> LayerParallelSession:
        """On rank 0, as `DraftModel.open`; one session at a time."""
        return LayerParallelSession(self, token_ids)

    def follow(self) -> None:
        """On the other ranks: do what rank 0 does, until it closes its session."""
        while True:
            what, count = self._tell(torch.empty(2, dtype=torch.int64)).tolist()
            if what == _END:
                return
            self._do(what, count, torch.empty(count, dtype=torch.int64))

    def lead(self, what: int, count: int, ids: Tensor | None = None) -> Tensor:
        """On rank 0: have all ranks do something."""
        self._tell(torch.tensor([what, count]))
        return self._do(what, count, ids) if what != _END else torch.empty(0)

    @torch.inference_mode()
    def _do(self, what: int, count: int, ids: Tensor | None) -> Tensor:
        """Forget the tokens from `count` on, or append `count` tokens: their logits [count, V]."""
        if ids is None or what == _CUT:
            self._kv = {layer: (k[:, :, :count], v[:, :, :count]) for layer, (k, v) in self._kv.items()}
            self._length = count
            return torch.empty(0)
        return self._run(self._tell(ids), fuzzy=what == _FUZZY)

    def _run(self, ids: Tensor, fuzzy: bool) -> Tensor:
        x = self._body.embed_tokens(ids[None])
        angles = self._body.rotary_emb(x, torch.arange(self._length, self._length + len(ids))[None])
        for first in range(0, len(self._body.layers), self._ranks):
            side_by_side = self._gather(self._attended(first + self._rank, x, angles)) if fuzzy else None
            for place in range(self._ranks):
                if side_by_side is not None:
                    attended = side_by_side[place]
                else:
                    own = place == self._rank
                    mine = self._attended(first + place, x, angles) if own else torch.zeros_like(x)
                    attended = self._gather(mine)[place]
                layer = self._body.layers[first + place]
                x = x + attended
                x = x + layer.mlp(layer.post_attention_layernorm(x))
        self._length += len(ids)
        return self._head(self._body.norm(x))[0]  # type: ignore[no-any-return]

    def _attended(self, number: int, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """What the attention of a layer adds to x [1, n, hidden]; its KV grows."""
        layer = self._body.layers[number]
        attention, normed = layer.self_attn, layer.input_layernorm(x)
        q, k, v = (
            project(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, *angles)
        if number in self._kv:
            k, v = (torch.cat(parts, 2) for parts in zip(self._kv[number], (k, v), strict=True))
        self._kv[number] = k, v
        seen = torch.ones(x.shape[1], k.shape[2], dtype=torch.bool).tril(k.shape[2] - x.shape[1])
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
        return attention.o_proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class LayerParallelSession:
    """A `DraftSession` on rank 0: what is committed was run layer by layer, what is drafted side by side."""

    ready = True

    def __init__(self, model: LayerParallel, token_ids: Sequence[int]) -> None:
        self._model = model
        self._open = True
        self.length = 0
        self._nodes = 0
        model.lead(_CUT, 0)
        if token_ids:
            self.advance(token_ids)

    def advance(self, token_ids: Sequence[int]) -> Tensor:
        self.rollback()
        self.length += len(token_ids)
        return self._model.lead(_EXACT, len(token_ids), torch.tensor(list(token_ids)))

    def extend(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        """As `DraftSession.extend`. Raises DrafterError where the nodes are no chain."""
        if list(parents) != [*range(self._nodes - 1, self._nodes - 1 + len(tokens))]:
            raise DrafterError("layers side by side draft chains: set branching=1 and width=1")
        self._nodes += len(tokens)
        return self._model.lead(_FUZZY, len(tokens), torch.tensor(list(tokens)))

    def commit(self, path: Sequence[int]) -> None:
        """As `DraftSession.commit`, of no nodes: theirs is no KV to keep."""
        if path:
            raise DrafterError("what was drafted side by side is run again, layer by layer: advance over it")
        self.rollback()

    def rollback(self) -> None:
        if self._nodes:
            self._model.lead(_CUT, self.length)
            self._nodes = 0

    def close(self) -> None:
        if self._open:
            self._model.lead(_END, 0)
            self._open = False


class LayerParallelDrafter(ModelDrafter):
    """A draft model of `LayerParallel`; accepted tokens are read again, which calibrates their KV."""

    name = "easyspec"
    keeps_nodes = False
