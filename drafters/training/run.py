"""A drafter from nothing: data, the target's states, training, and a folder that serves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from drafters.errors import DrafterError
from drafters.heads.folder import CONFIG, HEADS, save_head
from drafters.heads.head import Head
from drafters.protocols import Teacher
from drafters.training.data import pieces
from drafters.training.states import Drawn, Sequences, StatesFolder, read
from drafters.training.trainer import Acceptance, Progress, Recipe, Trainer

CARD, FIGURES = "README.md", "training.json"


@dataclass(frozen=True)
class Material:
    """What a drafter is trained on.

    tokens   of all sequences together, about
    answers  share of them that are the target's own answers with their prompts
    """

    paths: tuple[Path, ...]
    tokens: int = 100_000
    answers: float = 0.5
    drawn: Drawn = field(default_factory=Drawn)


def train(
    name: str,
    teacher: Teacher,
    material: Material,
    recipe: Recipe,
    output: Path,
    states: Path,
    report: Callable[[str], None],
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train the member `name` for the target and write it to `output`; what `states` has is not run again, and a
    training that was stopped goes on.

    `options` are the member's own. Returns the figures, which are also written beside the weights.

    Raises:
        DrafterError: there is no such member or option, nothing to learn from, or something cannot be written.
    """
    if name not in HEADS:
        raise DrafterError(f"there is no trained drafter {name!r}; there are {', '.join(sorted(HEADS))}")
    if (output / CONFIG).is_file() and not (output / FIGURES).is_file():
        raise DrafterError(f"{output} holds something else: name another output")
    try:
        config = HEADS[name].configure(teacher, **(options or {}))
    except TypeError as error:
        raise DrafterError(f"the drafter {name} has no such option: {error}") from error
    drawn = material.drawn
    made = pieces(material.paths, teacher, material.tokens, drawn.length, material.answers, drawn.seed)
    report(f"{len(made)} sequences; the target reads them")
    store = StatesFolder(states, teacher)
    sequences = store.of(made, config.reads, drawn, lambda there, of: report(f"states of {there} of {of} sequences"))
    torch.manual_seed(recipe.seed)
    if config.draft_vocab >= teacher.vocab_size:
        config = replace(config, draft_vocab=0)
    head = HEADS[name](config, teacher)
    if config.draft_vocab:
        head.choose_vocabulary(_frequent(sequences, config.draft_vocab, teacher.vocab_size), teacher)
    else:
        head.share(teacher)
    trainer = Trainer(head, sequences, recipe, output)
    progress = trainer.run(lambda done: report(_line(done)))
    figures = _figures(head, sequences, material, recipe, progress)
    try:
        (output / FIGURES).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        (output / CARD).write_text(_card(figures), encoding="utf-8")
        save_head(head, output)
    except (OSError, SafetensorError) as error:
        raise DrafterError(
            f"the trained drafter cannot be written to {output}: {error}; give the command again when there is room, "
            "the training is kept"
        ) from error
    return figures


def _frequent(sequences: Sequences, count: int, vocab_size: int) -> torch.Tensor:
    """The ids that the target chooses most often, ascending; unseen ones from the lowest on make up the number."""
    seen: Counter[int] = Counter()
    for file in sequences.files:
        seen.update(read(file, ())[1].tolist())
    order = [token for token, _ in seen.most_common(count)]
    known = set(order)
    order += [token for token in range(vocab_size) if token not in known][: count - len(order)]
    return torch.tensor(sorted(order))


def _line(done: Progress) -> str:
    last: Acceptance = done.looks[done.step]
    return f"step {done.step}, {done.seconds:.0f} s, loss {done.loss:.3f}: {last}"


def _figures(
    head: Head, sequences: Sequences, material: Material, recipe: Recipe, progress: Progress
) -> dict[str, Any]:
    first, last = min(progress.looks), max(progress.looks)
    return {
        "drafter": head.config.name,
        "target": {key: value for key, value in head.config.target.items() if key != "fingerprint"},
        "parameters": head.num_parameters,
        "draft_vocab": head.config.draft_vocab or head.config.target["vocab_size"],
        "tokens": sequences.tokens,
        "answers": material.answers,
        "sequences": len(sequences.files),
        "recipe": asdict(recipe),
        "steps": progress.step,
        "minutes": progress.seconds / 60,
        "loss": progress.loss,
        "held_out_before": list(progress.looks[first].whole),
        "held_out": list(progress.looks[last].whole),
        "held_out_length": progress.looks[last].length,
    }


def _card(figures: dict[str, Any]) -> str:
    by_position = " | ".join(f"{share:.3f}" for share in figures["held_out"])
    numbers = " | ".join(str(k) for k in range(1, len(figures["held_out"]) + 1))
    rule = "|".join(["---"] * (len(figures["held_out"]) + 1))
    return f"""# {figures["drafter"]} for {figures["target"]["name"]}

A trained drafter of Folio: {figures["parameters"]:,} parameters of its own; embeddings and output matrix are the
target's. Use it with `FOLIO_DRAFT_MODEL=<this folder>`; `auto` and `fusion` then ask it where that pays.

Trained for {figures["steps"]} steps ({figures["minutes"]:.1f} minutes) on {figures["tokens"]:,} tokens, of which
{figures["answers"]:.0%} are the target's own answers and their prompts. On answers that were held out, the share of
places at which the first guesses are all what the target chooses:

| guesses | {numbers} |
|{rule}|
| all right | {by_position} |

A chain of them would commit {figures["held_out_length"]:.2f} tokens a step. The rest is in `{FIGURES}`.
"""
