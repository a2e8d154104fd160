"""Falcon (arXiv 2412.12639): several tokens a forward, of which each is told of the others' places.

A row is a pair, its state and the token after it, passed through a recurrence (an LSTM) and a decoder layer; it learns
the state `block` places on. So the last `block` rows guess the coming `block` tokens together: they see one another
(the *relaxed* causal mask), and the text. Of their states and the tokens chosen on a path the next block is made, hence
the tree: within a block all nodes of a depth share their children's distribution, which costs nothing; behind it each
path has its own.

*Coupled sequential glancing* at training: what a first pass gets wrong is, for a share of these rows, given as their
input, state and token, so that the others learn to make use of it. The paper lowers the share as it goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from drafters.heads.growing import KV, joined, latest
from drafters.heads.head import (
    LAST,
    WINDOW,
    Context,
    Guess,
    Head,
    HeadConfig,
    Shallow,
    configured,
    layer_config,
    member,
)
from drafters.heads.layers import DecoderLayer, Rotary, distance, transformer_config
from drafters.protocols import Target


class Recurrence(nn.Module):
    """An LSTM with a projection behind it, which shows its cells after every row: one can go on from any of them."""

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.read, self.recall = nn.Linear(inputs, 4 * size), nn.Linear(size, 4 * size, bias=False)
        self.project = nn.Linear(size, size)

    def forward(self, x: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs [..., n, size] of x [..., n, inputs], and what is carried on behind each row [..., n, 2, size];
        `carried` [..., 2, size] comes from before."""
        hidden, cell = carried.unbind(-2)
        kept = []
        for gates in self.read(x).unbind(-2):
            enter, keep, leave, new = (gates + self.recall(hidden)).chunk(4, -1)
            cell = keep.sigmoid() * cell + enter.sigmoid() * new.tanh()
            hidden = leave.sigmoid() * cell.tanh()
            kept.append(torch.stack((hidden, cell), -2))
        after = torch.stack(kept, -3)
        return self.project(after[..., 0, :]), after


@member
class Falcon(Head):
    """Blocks of `block` guesses; `glance` percent of the wrong rows are shown their answer at training."""

    name = "falcon"
    bounded = False

    def __init__(self, config: HeadConfig, target: Target) -> None:
        super().__init__(config, target)
        layer = transformer_config(config.layer)
        self.block, self.glance = config.options["block"], config.options["glance"] / 100
        self.recurrence = Recurrence(2 * self.hidden_size, self.hidden_size)
        self.layer = DecoderLayer(layer)
        self.rotary = Rotary(layer)

    @classmethod
    def configure(
        cls,
        target: Target,
        depth: int = 4,
        window: int = WINDOW,
        block: int = 2,
        glance: int = 30,
        intermediate: int = 0,
        draft_vocab: int = 0,
    ) -> HeadConfig:
        layer, depth = layer_config(target, 1, intermediate), -(-depth // block) * block  # whole blocks
        return configured(cls.name, target, (LAST,), depth, window, layer, draft_vocab, block=block, glance=glance)

    def enter(self, states: Tensor, embedded: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
        """`Recurrence` over pairs of states [..., n, hidden] and embedded tokens [..., n, hidden]."""
        rows: tuple[Tensor, Tensor] = self.recurrence(torch.cat((embedded, states), -1), carried)
        return rows

    def keys_values(self, x: Tensor, positions: Tensor) -> KV:
        """Of rows x [..., n, hidden] at their places."""
        return self.layer.self_attn.keys_values(self.layer.input_layernorm(x), self.rotary(positions))

    def attend(self, x: Tensor, positions: Tensor, seen: KV, mask: Tensor) -> Tensor:
        """The states [..., n, hidden] that rows x at their places make, seeing of `seen` what the mask says."""
        q = self.layer.self_attn.queries(self.layer.input_layernorm(x), self.rotary(positions))
        return self.layer.after(x, self.layer.self_attn.attend(q, *seen, mask))

    def blank(self, states: Tensor) -> Tensor:
        """Rows before the text, so that its first pair has a block: `block` - 1 of states [..., hidden]."""
        return states.new_zeros(*states.shape[:-2], self.block - 1, states.shape[-1])

    def guesses(self, states: Tensor, tokens: Tensor, generator: torch.Generator) -> Iterator[Guess]:
        size, depth = self.block, self.config.depth
        most = tokens.shape[1] - 2 - depth
        offset = min(int(torch.randint(size, (), generator=generator)), most)
        text = torch.cat((self.blank(states[:, :, 0]), states[:, :, 0]), 1)
        embedded = self.embed(tokens)
        after = torch.cat((self.blank(embedded), embedded[:, 1:]), 1)  # the token beside each state
        blocks = torch.arange((most - offset) // size + 1).repeat_interleave(size)
        rows = offset + torch.arange(len(blocks))  # of `text`; pair i is row i + size - 1
        ends = rows[size - 1 :: size]
        if self.training and self.glance:
            with torch.no_grad():
                own = self._first(text[:, :-1], after, rows)[0]
            text, after = self._glanced(own, text, after, rows, generator)
        own, seen, mask, behind = self._first(text[:, :-1], after, rows)
        carried = behind[:, ends]
        for first in range(0, depth, size):
            if first:
                chosen = after[:, rows + first].unflatten(1, (-1, size))
                x, behind = self.enter(own.unflatten(1, (-1, size)), chosen, carried)
                x, carried = x.flatten(1, 2), behind[:, :, -1]
                seen = joined([seen], [self.keys_values(x, rows + first)])[0]
                mask = torch.cat((mask, blocks[:, None] == blocks), 1)
                own = self.attend(x, rows + first, seen, mask)
            loss = distance(own, states[:, rows + first + 1, 0])
            for k in range(size):
                yield Guess(self.lm_head(own[:, k::size]), ends - size + 1, loss if k == 0 else None)

    def _first(self, text: Tensor, after: Tensor, rows: Tensor) -> tuple[Tensor, KV, Tensor, Tensor]:
        """The states that `rows` make of the text, what they see of it, and what is carried behind each row of it."""
        x, behind = self.enter(text, after, text.new_zeros(len(text), 2, self.hidden_size))
        places = torch.arange(x.shape[1])
        end = (rows - rows[0]) // self.block * self.block + rows[0] + self.block - 1
        mask = (places <= end[:, None]) & (places > end[:, None] - self.config.window)
        seen = self.keys_values(x, places)
        return self.attend(x[:, rows], rows, seen, mask), seen, mask, behind

    def _glanced(
        self, own: Tensor, text: Tensor, after: Tensor, rows: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The text with the answers of some rows that were wrong in their place."""
        right = self.lm_head(text[:, rows + self.block]).argmax(-1)
        wrong = self.lm_head(own).argmax(-1) != right
        shown = wrong & (torch.rand(wrong.shape, generator=generator) < self.glance)
        text, after = text.clone(), after.clone()
        for part in (text, after):
            part[:, rows] = torch.where(shown[..., None], part[:, rows + self.block], part[:, rows])
        return text, after

    def begin(self, shallow: Shallow | None = None) -> Context:
        return _Blocks(self)


@dataclass(frozen=True)
class _Block:
    """A block of guesses behind a path: its states [block, hidden], their logits, what is carried on, and the KV of the
    path's rows; `depth` of the node that it is behind."""

    own: Tensor
    logits: Tensor
    carried: Tensor
    path: Sequence[KV]
    depth: int


class _Blocks(Context):
    """KV of the pairs in the window, and the last rows of the text; of each node its block, and the tokens since."""

    def __init__(self, head: Falcon) -> None:
        self._head = head
        self._pairs: list[KV] = []
        self._rows = self._carried = torch.empty(0)
        self._last = 0  # place of the last pair
        self._root: _Block
        self._nodes: list[tuple[_Block, tuple[Tensor, ...]]] = []

    def follow(self, states: Tensor, tokens: Tensor, first: int) -> Tensor:
        head, window = self._head, self._head.config.window
        states, embedded = states[:, 0], head.embed(tokens)
        if not self._pairs:
            blank = head.blank(states)
            states, embedded, first = torch.cat((blank, states)), torch.cat((blank, embedded)), first - len(blank)
            self._carried, self._rows = states.new_zeros(2, head.hidden_size), states[:0]
        x, behind = head.enter(states, embedded, self._carried)
        new = head.keys_values(x, torch.arange(first, first + len(x), device=x.device))
        self._pairs = latest(joined(self._pairs, [new]), window)
        self._rows, self._carried = torch.cat((self._rows, x))[-head.block :], behind[-1]
        self._last = first + len(x) - 1
        self._root = self._made(self._rows, self._last, (), self._carried, 0)
        self.drop()
        return self._root.logits[:1]

    def drop(self) -> None:
        self._nodes = []

    def expand(self, tokens: Tensor, parents: Sequence[int]) -> Tensor:
        logits = []
        for token, parent in zip(self._head.embed(tokens), parents, strict=True):
            block, since = (self._root, ()) if parent < 0 else self._nodes[parent]
            since = (*since, token)
            if len(since) == self._head.block:
                block, since = self._behind(block, torch.stack(since)), ()
            self._nodes.append((block, since))
            logits.append(block.logits[len(since)])
        return torch.stack(logits)

    def _behind(self, block: _Block, path: Tensor) -> _Block:
        """The block behind a block's path of embedded tokens [block, hidden]."""
        x, behind = self._head.enter(block.own, path, block.carried)
        depth = block.depth + len(path)
        return self._made(x, self._last + depth, block.path, behind[-1], depth)

    def _made(self, x: Tensor, last: int, path: Sequence[KV], carried: Tensor, depth: int) -> _Block:
        """The block of rows x, the last of which is at the place `last`."""
        head = self._head
        positions = torch.arange(last - len(x) + 1, last + 1, device=x.device)
        seen = self._pairs
        if depth:
            new = head.keys_values(x, positions)
            path = joined(path, [new])
            seen = joined(seen, path)
        mask = torch.ones(len(x), len(seen[0][0]), dtype=torch.bool, device=x.device)
        own = head.attend(x, positions, seen[0], mask)
        return _Block(own, head.lm_head(own), carried, path, depth)
