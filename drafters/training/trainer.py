"""Training of a head on states that are kept: seeded, resumable, with the acceptance on held-out texts as it goes.

The loss of a guess is the cross-entropy to the target's own distribution at its place, within the draft vocabulary;
later guesses count less, for they matter only where all before them were right, and a prompt's tokens less than an
answer's. What is reported is what counts: how often the first k guesses are all the target's choices.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drafters.errors import DrafterError
from drafters.heads.head import LAST, Head
from drafters.training import states
from drafters.training.states import Sequences

CHECKPOINT = "training.pt"
_EVERY_S = 60.0  # between checkpoints
_LOOKS = 8  # looks at the held-out texts
_PROMPT = 0.1  # how much a token of a prompt counts beside one that the target wrote


@dataclass(frozen=True)
class Recipe:
    """How a head is trained.

    steps, minutes  whichever comes first; 0: no such bound, one of them must be given
    batch, length   sequences a step, and tokens of each
    learning_rate   at its height; 0: the member's own
    warm_up         share of the training in which the rate rises to its height, from which it falls by a cosine
    decay           how much less a guess counts than the one before it
    held_out        share of the sequences that only the acceptance is taken on
    """

    steps: int = 0
    minutes: float = 0.0
    batch: int = 4
    length: int = 256
    learning_rate: float = 0.0
    warm_up: float = 0.05
    decay: float = 0.8
    held_out: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Acceptance:
    """On held-out texts, greedily: how often the first guess is right, the first two are, and so on."""

    whole: tuple[float, ...] = ()

    @property
    def length(self) -> float:
        """Tokens a step that a chain of all guesses would commit, the bonus token included."""
        return 1 + sum(self.whole)

    def __str__(self) -> str:
        return f"{self.length:.2f} tokens a step; right up to guess " + ", ".join(
            f"{k}: {share:.0%}" for k, share in enumerate(self.whole, 1)
        )


@dataclass
class Progress:
    """How far a training is: steps and seconds, the last loss in nats, and the acceptance by the step of each look."""

    step: int = 0
    seconds: float = 0.0
    loss: float = math.nan
    looks: dict[int, Acceptance] = field(default_factory=dict)


def distilled(
    head: Head,
    tokens: Tensor,
    held: Tensor,
    random: torch.Generator,
    decay: float = Recipe.decay,
    weights: Tensor | None = None,
) -> Tensor:
    """The loss of a head on tokens [B, T] and states [B, T, its layers and LAST, hidden], in nats a guess.

    Guess k counts decay ** (k - 1), and a token as much as its weight [B, T].
    """
    with torch.no_grad():
        wanted = head.lm_head(held[:, :, -1]).float().softmax(-1)
    total, count = torch.zeros(()), 0.0
    for k, guess in enumerate(head.guesses(held[:, :, :-1], tokens, random), 1):
        losses = -(wanted[:, guess.at + k] * guess.logits.float().log_softmax(-1)).sum(-1)
        if weights is None:
            loss = losses.mean()
        else:
            here = torch.cat((weights[:, 1:], weights[:, -1:]), 1)[:, guess.at + k]  # of the token that is guessed
            loss = (losses * here).sum() / here.sum()
        total = total + decay ** (k - 1) * (loss if guess.loss is None else loss + guess.loss)
        count += decay ** (k - 1)
    return total / count


class Trainer:
    """Trains one head in place; `folder` keeps what a stopped training goes on from.

    Raises:
        DrafterError: neither steps nor minutes, too few sequences, or a checkpoint of another training.
    """

    def __init__(self, head: Head, sequences: Sequences, recipe: Recipe, folder: Path) -> None:
        if recipe.steps <= 0 and recipe.minutes <= 0:
            raise DrafterError("a training needs a bound: steps or minutes")
        self._shortest = head.config.depth + 2
        files = [file for file in sequences.files if states.length(file) >= self._shortest]
        held = max(1, int(len(files) * recipe.held_out))
        if len(files) - held < 1:
            raise DrafterError(f"{len(files)} sequences are too few to train on and to hold some out")
        self.held, self.taught = files[:held], files[held:]
        self.head, self.recipe, self.progress = head, recipe, Progress()
        self._checkpoint = folder / CHECKPOINT
        self._own = [weight for weight in head.parameters() if weight.requires_grad]
        self._rate = recipe.learning_rate or head.rate
        self._optimiser = torch.optim.AdamW(self._own, lr=self._rate, betas=(0.9, 0.95), weight_decay=0.01)
        self._random = torch.Generator().manual_seed(recipe.seed)
        self._half = _multiplies_bfloat16()

    def run(self, report: Callable[[Progress], None]) -> Progress:
        """Train to the end; `report` is called at each look at the held-out texts."""
        if self._checkpoint.is_file():
            self._resume()
        progress = self.progress
        began, saved = time.monotonic() - progress.seconds, time.monotonic()
        if not progress.looks:
            self._look(report)
        looked = self._share(progress)
        while (share := self._share(progress)) < 1:
            progress.loss = self._step(share)
            progress.step += 1
            progress.seconds = time.monotonic() - began
            if self._share(progress) - looked >= 1 / _LOOKS:
                looked = self._share(progress)
                self._look(report)
            if time.monotonic() - saved > _EVERY_S:
                saved = time.monotonic()
                self._save()
        if progress.step not in progress.looks:
            self._look(report)
        self._save()
        self.head.eval()
        return progress

    def _share(self, progress: Progress) -> float:
        recipe = self.recipe
        by_steps = progress.step / recipe.steps if recipe.steps else 0.0
        return max(by_steps, progress.seconds / (60 * recipe.minutes) if recipe.minutes else 0.0)

    def _step(self, share: float) -> float:
        """One step of the optimiser at this share of the training; the loss in nats."""
        recipe = self.recipe
        falls = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share))
        for group in self._optimiser.param_groups:
            group["lr"] = self._rate * falls * min(1.0, max(share, 0.01) / recipe.warm_up)
        self.head.train()
        self.head.progressed(share)
        picked = torch.randint(len(self.taught), (recipe.batch,), generator=self._random).tolist()
        tokens, held, weights = self._batch([self.taught[i] for i in picked])
        with self._arithmetic():
            loss = distilled(self.head, tokens, held, self._random, self.recipe.decay, weights)
        self._optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._own, 1.0)
        self._optimiser.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DrafterError(f"the loss is {value} at step {self.progress.step}: lower the learning rate")
        return value

    def _look(self, report: Callable[[Progress], None]) -> None:
        self.progress.looks[self.progress.step] = self.acceptance(self.held)
        report(self.progress)

    @torch.no_grad()
    def acceptance(self, files: Sequence[Path], most: int = 64) -> Acceptance:
        """Over the answers in some sequences, of which at most so many are read; over the texts where none is one.

        Guess k counts where the text went on as the target chose up to there: only then is its past what it would be.
        """
        head, random = self.head.eval(), torch.Generator().manual_seed(self.recipe.seed)
        answers = [file for file in files if states.prompt(file)]
        right, rows = [0.0] * head.config.depth, [0] * head.config.depth
        for file in (answers or files)[:most]:
            first = max(0, states.prompt(file) - 1)
            if states.length(file) - first < self._shortest:
                continue
            tokens, choices, held = (part[None] for part in states.read(file, (*head.config.reads, LAST)))
            with self._arithmetic():
                guesses = [(g.at, g.logits.argmax(-1)) for g in head.guesses(held[:, :, :-1], tokens, random)]
            whole = torch.ones(guesses[0][0].shape, dtype=torch.bool)
            valid = guesses[0][0] >= first
            for k, (at, best) in enumerate(guesses, 1):
                chosen = choices[0, at + k]
                whole = whole[: len(at)] & (head.vocabulary[best[0]] == chosen)
                valid = valid[: len(at)]
                right[k - 1] += float((whole & valid).sum())
                rows[k - 1] += int(valid.sum())
                valid = valid & (tokens[0, (at + k + 1).clamp(max=tokens.shape[1] - 1)] == chosen)
        return Acceptance(tuple(a / max(n, 1) for a, n in zip(right, rows, strict=True)))

    def _batch(self, files: Sequence[Path]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, T], states [B, T, layers and LAST, hidden], and how much each token counts [B, T], of a part drawn
        of each sequence: of an answered prompt one that ends in the answer."""
        length = min(self.recipe.length, *(states.length(file) for file in files))
        parts, weights = [], []
        for file in files:
            prompt, most = states.prompt(file), states.length(file) - length
            least = min(max(0, prompt + self._shortest - length), most)
            start = least + int(torch.randint(most - least + 1, (), generator=self._random))
            parts.append(states.read(file, (*self.head.config.reads, LAST), start, length))
            weights.append(torch.where(torch.arange(start, start + length) < prompt, _PROMPT, 1.0))
        tokens, _, held = (torch.stack(column) for column in zip(*parts, strict=True))
        return tokens, held, torch.stack(weights)

    def _arithmetic(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self._half else nullcontext()

    def _save(self) -> None:
        kept = {
            "config": self.head.config.as_dict(),
            "recipe": {key: value for key, value in asdict(self.recipe).items() if key not in ("steps", "minutes")},
            "progress": {**asdict(self.progress), "looks": {k: v.whole for k, v in self.progress.looks.items()}},
            "weights": self.head.own_state(),
            "optimiser": self._optimiser.state_dict(),
            "random": self._random.get_state(),
            "half": self._half,
        }
        part = self._checkpoint.with_suffix(".part")
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            torch.save(kept, part)
            part.replace(self._checkpoint)
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            raise DrafterError(f"the training cannot be kept in {self._checkpoint.parent}: {error}") from error

    def _resume(self) -> None:
        try:
            kept = torch.load(self._checkpoint, weights_only=True)
        except Exception as error:  # what a damaged file raises is of any kind
            raise DrafterError(f"{self._checkpoint} is damaged ({error}): remove it to begin anew") from error
        recipe = {key: value for key, value in asdict(self.recipe).items() if key not in ("steps", "minutes")}
        if kept["config"] != self.head.config.as_dict() or kept["recipe"] != recipe:
            raise DrafterError(
                f"{self._checkpoint} is of a training with other options: name another output, or remove it"
            )
        self.head.load_state_dict(kept["weights"], strict=False)
        self._optimiser.load_state_dict(kept["optimiser"])
        self._random.set_state(kept["random"])
        self._half = kept.get("half", self._half)  # an earlier version did not keep it
        looks = {step: Acceptance(tuple(whole)) for step, whole in kept["progress"].pop("looks").items()}
        self.progress = Progress(**kept["progress"], looks=looks)


def _multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for it (AMX or AVX-512): its flags say, never a trial, or two trainings
    of one seed would differ."""
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
