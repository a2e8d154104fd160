"""What the drafters of one engine share, and what the engine lends them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from drafters.heads.head import Head
from drafters.learned import Learned
from drafters.machine_profile import MachineProfile
from drafters.models.judge import Judge
from drafters.protocols import Datastore, DraftModel, SkippableModel, TextCodec
from drafters.training.online import Allowance, Packing


@dataclass
class Resources:
    """One per engine; each request has a copy (`dataclasses.replace`) with what is its owner's or its own.

    tokenizer     tells the name of the target's tokenizer, as a datastore names its own; None: not known
    draft_model   another checkpoint; with `draft_codec` and `codec` its vocabulary may be another
    self_model    the target itself over a shorter prompt (`rag`, `cascade`)
    skippable     the target with layers skipped (`self_speculation`)
    head          a trained drafter of the target (`trained`)
    judge         of the target, beside the trained drafter (`trained:judge`)
    packing       of the head, where the engine packed its weights
    datastore     continuations in the corpus that the request may see (`datastore`), in the ids of `tokenizer`
    learned       what the owner's requests have taught
    profile       learns from every step
    learning      the engine's time that may be spent on learning (`trained:online`)
    """

    vocab_size: int
    draft_model: DraftModel | None = None
    self_model: DraftModel | None = None
    skippable: SkippableModel | None = None
    head: Head | None = None
    judge: Judge | None = None
    packing: Packing | None = None
    datastore: Datastore | None = None
    tokenizer: Callable[[], str | None] = lambda: None
    codec: TextCodec | None = None
    draft_codec: TextCodec | None = None
    learned: Learned = field(default_factory=Learned)
    profile: MachineProfile = field(default_factory=MachineProfile)
    learning: Allowance = field(default_factory=Allowance)
