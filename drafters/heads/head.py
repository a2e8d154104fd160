"""What a trained drafter is: what it reads of the target, how its guesses depend on one another, what it emits.

A head is told the text in *pairs*: pair i is the target's states after token i and the token i + 1 itself. Behind the
last pair hangs a tree: its root is the newest token, whose states are not known yet. Guess k of pair i is the token
i + 1 + k. How a guess depends on those before it is the member's affair: not at all (Medusa), by a recurrent state
(Hydra), by attention (EAGLE), or all of a block at once (DFlash).

All share the target's embeddings and its output matrix, of which a draft vocabulary may keep some rows; both stay as
they are, and are not written with the head.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from drafters.errors import DrafterError
from drafters.protocols import Target

LAST = -1
"""As a layer's number: the last layer's output after the final norm, which the logits are made of. Number k from 0 on
is what goes into layer k, hence what k layers have made of the embeddings."""

WINDOW = 256
"""Pairs that a head's layers look back to; beyond what they were trained on their guesses collapse."""

_SAME = 0.99  # cosine of two fingerprints of the same weights


@dataclass(frozen=True)
class HeadConfig:
    """A trained drafter without its weights.

    name         of the member of the family (`HEADS`)
    reads        layers whose states it reads, in this order (`LAST` or 0 to the number of the target's layers)
    depth        guesses that it was trained for; a block has no more
    window       tokens of the context that it looks back to
    layer        transformers' configuration of its decoder layers; {} where it has none
    draft_vocab  ids that it can guess; 0: all of the target's
    options      of the member
    target       what `described` says of the target that it was trained for; {} where that is not known
    """

    name: str
    reads: tuple[int, ...]
    depth: int
    window: int
    layer: dict[str, Any] = field(default_factory=dict)
    draft_vocab: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    target: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of(cls, described: dict[str, Any]) -> HeadConfig:
        """From `as_dict`. Raises DrafterError where a key is missing or unknown."""
        try:
            return cls(**{**described, "reads": tuple(described["reads"])})
        except (TypeError, KeyError) as error:
            raise DrafterError(f"this is no description of a trained drafter: {error}") from error


@dataclass(frozen=True)
class Guess:
    """The logits of one guess of many pairs, at training.

    logits [B, N, draft vocabulary]; at int64 [N], the pairs that guess; loss: what the member adds to the trainer's
    """

    logits: Tensor
    at: Tensor
    loss: Tensor | None = None


Shallow = Callable[[Tensor, Sequence[int]], Tensor]
"""What the target's first layers make of nodes behind the text, of which the root is node 0: tokens int64 [n] and their
parents (-1: the root's own) to states [n, hidden]."""


class Context(ABC):
    """What a head knows of one text, and of the tree behind it. Nodes are numbered since the last `follow`."""

    @abstractmethod
    def follow(self, states: Tensor, tokens: Tensor, first: int) -> Tensor:
        """Read pairs, drop the tree; the logits [1, draft vocabulary] of the first guess behind them.

        states [n, layers, hidden], tokens int64 [n] with n >= 1; `first` is the place of the first pair in the text.
        """

    @abstractmethod
    def expand(self, tokens: Tensor, parents: Sequence[int]) -> Tensor:
        """Add nodes; the logits [n, draft vocabulary] of the guesses below them.

        A parent is a node of an earlier call, or -1: the root.
        """

    @abstractmethod
    def drop(self) -> None:
        """Drop the tree."""


class Head(nn.Module, ABC):
    """The base of all members; weights that are its own are trained and kept.

    rate     of learning, at its height, where none is asked for
    costly   whether a node costs a forward of the head; where not, a tree may try many
    bounded  whether it has no more guesses than `depth`
    exit     of how many of the target's first layers it has its guesses run through; 0: none
    mutual   whether those of its `prompts` that stand behind one token see one another both ways
    """

    name: ClassVar[str]
    rate: ClassVar[float] = 1e-3
    costly: ClassVar[bool] = True
    d2t: Tensor
    t2d: Tensor
    bounded: ClassVar[bool] = True
    mutual: ClassVar[bool] = False
    exit: int = 0

    def __init__(self, config: HeadConfig, target: Target) -> None:
        super().__init__()
        check_fits(config, target)
        self.config = config
        self.hidden_size = target.hidden_size
        count = config.draft_vocab or target.vocab_size
        self.lm_head = nn.Linear(target.hidden_size, count, bias=False).requires_grad_(False)
        # of guess i, the target's id is i + d2t[i]; t2d tells which of the target's ids can be guessed
        self.register_buffer("d2t", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("t2d", torch.ones(target.vocab_size, dtype=torch.bool))
        self._target = target
        self.embed_tokens: nn.Module | None = None
        self.owns_output = False

    @classmethod
    @abstractmethod
    def configure(cls, target: Target, *given: Any, **options: Any) -> HeadConfig:
        """The configuration for a target, of options with defaults."""

    @abstractmethod
    def guesses(self, states: Tensor, tokens: Tensor, generator: torch.Generator) -> Iterator[Guess]:
        """The first guess, the second and so on, of states [B, T, layers, hidden] and tokens [B, T]; what guess k needs
        of the tokens guessed before is taken from the text. `generator` is for pairs drawn at random."""

    def progressed(self, share: float) -> None:
        """Be told which share of its training is done, for what is learned later than the rest."""

    @abstractmethod
    def begin(self, shallow: Shallow | None = None) -> Context:
        """A context without a text; `shallow` runs the first `exit` layers, for a head that wants them run."""

    def choose_vocabulary(self, ids: Tensor, target: Target) -> None:
        """Guess the target's `ids` int64 [draft vocabulary], ascending, and no others."""
        own: dict[str, Tensor] = {"d2t": ids - torch.arange(len(ids)), "t2d": torch.zeros_like(self.t2d)}
        own["t2d"][ids] = True
        self.d2t.copy_(own["d2t"])
        self.t2d.copy_(own["t2d"])
        self.share(target)

    def share(self, target: Target) -> None:
        """Take from the target what it lends: the rows of its output matrix that the vocabulary keeps."""
        with torch.no_grad():
            self.lm_head.weight.copy_(target.output_rows(self.vocabulary))

    def own(self, output: Tensor | None, embeddings: Tensor | None) -> None:
        """Use an output matrix [draft vocabulary, hidden] or embeddings [V, hidden] of its own, as others train them.

        Raises DrafterError where they are of other sizes.
        """
        for name, given, rows in (("output", output, len(self.d2t)), ("embedding", embeddings, len(self.t2d))):
            if given is not None and given.shape != (rows, self.hidden_size):
                raise DrafterError(f"its {name} matrix is {tuple(given.shape)}, not {(rows, self.hidden_size)}")
        if output is not None:
            self.lm_head.weight.data = output.to(self.lm_head.weight.dtype)
            self.owns_output = True
        if embeddings is not None:
            self.embed_tokens = nn.Embedding.from_pretrained(embeddings.float())

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings [..., hidden] of token ids: the target's, or its own where it has some."""
        found: Tensor = self._target.embed(ids) if self.embed_tokens is None else self.embed_tokens(ids)
        return found

    @property
    def prompts(self) -> Tensor | None:
        """Embeddings [depth, hidden] that it has run behind the text, to guess after them; None: none."""
        return None

    @property
    def vocabulary(self) -> Tensor:
        """The target's ids of its guesses, int64 [draft vocabulary]."""
        return torch.arange(len(self.d2t), device=self.d2t.device) + self.d2t

    def own_state(self) -> dict[str, Tensor]:
        """What is kept with the head: its own weights and, where it has one, its vocabulary."""
        shared = (set() if self.owns_output else {"lm_head.weight"}) | (
            set() if self.config.draft_vocab else {"d2t", "t2d"}
        )
        return {name: tensor for name, tensor in self.state_dict().items() if name not in shared}

    def copied(self) -> Head:
        """Another with the same weights, to be trained on; what the target lends is shared."""
        shared = {id(part): part for part in (self._target, self.lm_head, self.embed_tokens)}
        return copy.deepcopy(self, shared)

    def trainable(self) -> list[nn.Parameter]:
        """Its own weights, from now on to be trained: all but an output matrix and embeddings that came with it."""
        own = [weight for name, weight in self.named_parameters() if not name.startswith(("lm_head.", "embed_tokens."))]
        for weight in own:
            weight.requires_grad_()
        return own

    @cached_property
    def num_parameters(self) -> int:
        """Numbers in its own weights."""
        return sum(tensor.numel() for tensor in self.own_state().values() if tensor.is_floating_point())


HEADS: dict[str, type[Head]] = {}
"""The family, by name; `member` adds to it."""


def member(head: type[Head]) -> type[Head]:
    """Make a member of the family known."""
    HEADS[head.name] = head
    return head


def check_fits(config: HeadConfig, target: Target) -> None:
    """Raises DrafterError where a trained drafter was made for another target than this one."""
    found = described(target)
    for key, text in (
        ("hidden_size", "states of {} numbers"),
        ("vocab_size", "{} token ids"),
        ("num_layers", "{} layers"),
    ):
        wanted = config.target.get(key)
        if wanted is not None and wanted != found[key]:
            raise DrafterError(
                f"the trained drafter {config.name} was made for a target with {text.format(wanted)}, this one has "
                f"{text.format(found[key])}: train one for this target"
            )
    wanted = config.target.get("fingerprint")
    if wanted is not None and not _alike(wanted, found["fingerprint"]):
        raise DrafterError(
            f"the trained drafter {config.name} was made for {config.target.get('name', 'another target')}, whose "
            "weights are others than this one's: train one for this target"
        )
    wrong = [layer for layer in config.reads if not LAST <= layer <= target.num_layers]
    if wrong:
        raise DrafterError(
            f"the trained drafter {config.name} reads layer {wrong[0]}, and the target has {target.num_layers}"
        )


def described(target: Target) -> dict[str, Any]:
    """What a head remembers of its target; the fingerprint is a sample of its embeddings, which no precision and no
    quantisation changes much."""
    ids = torch.linspace(0, target.vocab_size - 1, 16).long()
    sample = target.embed(ids)[:, :: max(1, target.hidden_size // 8)].float().flatten()
    return {
        "name": target.name,
        "hidden_size": target.hidden_size,
        "vocab_size": target.vocab_size,
        "num_layers": target.num_layers,
        "fingerprint": [round(value, 4) for value in (sample / sample.norm()).tolist()],
    }


def configured(
    name: str,
    target: Target,
    reads: Sequence[int],
    depth: int,
    window: int,
    layer: dict[str, Any] | None = None,
    draft_vocab: int = 0,
    **own: Any,
) -> HeadConfig:
    """The configuration of the member `name` for a target; `own` are its own options."""
    return HeadConfig(name, tuple(reads), depth, window, layer or {}, draft_vocab, own, described(target))


def spread(target: Target) -> tuple[int, ...]:
    """A low, a middle and a high layer, as EAGLE-3 reads them."""
    count = target.num_layers
    return tuple(sorted({min(2, count), count // 2, max(count - 3, 1)}))


def _alike(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two fingerprints are of the same weights, in whatever precision."""
    a, b = torch.tensor(one), torch.tensor(other)
    return len(a) == len(b) and float(torch.dot(a, b) / (a.norm() * b.norm())) > _SAME


def layer_config(target: Target, layers: int, intermediate: int = 0, model_type: str = "llama") -> dict[str, Any]:
    """The configuration of `layers` decoder layers of the target's width and, unless `intermediate` says another, of
    its MLPs' width."""
    given = target.layer_config
    known = (
        "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps",
        "max_position_embeddings", "vocab_size", "rope_parameters",
    )  # fmt: skip
    own = {key: copy.deepcopy(given[key]) for key in known if given.get(key) is not None}
    if intermediate:
        own["intermediate_size"] = intermediate
    return {"model_type": model_type, **own, "num_hidden_layers": layers, "hidden_act": "silu"}
