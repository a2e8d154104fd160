"""Training a model to draft by diffusion beside talking on (TiDAR, arXiv 2511.08923):
``python -m drafters.training.tidar``.

The whole model learns, from a checkpoint on: its causal rows the next token, as ever, and the rows of mask tokens
behind some places the tokens of a block, all masked, both in one forward by the mask that it drafts with. So it becomes
another target than the one that it began as. The folder has the model and, below it, its drafter: FOLIO_MODEL names the
one, FOLIO_DRAFT_MODEL the other.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drafters.errors import DrafterError
from drafters.heads.folder import save_head
from drafters.heads.head import described
from drafters.heads.tidar import Tidar
from drafters.training.descent import descended
from drafters.training.plain import PlainTarget

DRAFTER, FIGURES = "drafter", "tidar.json"


@dataclass(frozen=True)
class Recipe:
    """What training does.

    block     mask tokens that are filled at once
    masked    what the loss of mask tokens weighs beside that of the text
    """

    steps: int = 500
    batch: int = 4
    sequence: int = 128
    block: int = 4
    masked: float = 1.0
    learning_rate: float = 3e-4
    seed: int = 0


def train(model: Any, head: Tidar, text: Tensor, recipe: Recipe) -> Iterator[float]:
    """Train a model and the mask token of its head in place, on text int64 [n]; yields each step's loss in nats.

    Raises DrafterError where the text is too short.
    """
    if len(text) <= recipe.sequence:
        raise DrafterError(f"{len(text)} tokens of text are too few for sequences of {recipe.sequence}")
    random = torch.Generator().manual_seed(recipe.seed)

    def loss() -> Tensor:
        model.train()
        causal, masked = losses(model, head, _drawn(text, recipe, random), random)
        return causal + recipe.masked * masked

    yield from descended(nn.ModuleList([model, head]), loss, recipe.steps, recipe.learning_rate, weight_decay=0.01)


def losses(model: Any, head: Tidar, ids: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cross-entropy to tokens [B, T], in nats: of the causal rows, and of the mask tokens behind some places."""
    output, depth = model.get_output_embeddings(), head.config.depth
    at, text, rows = head.behind(ids, random)
    wanted = (at[:, None] + torch.arange(2, depth + 2)).flatten()
    told = wanted < ids.shape[1]  # the last place's last guess is of a token that is not there
    causal = F.cross_entropy(output(text[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    return causal, F.cross_entropy(output(rows[:, told]).flatten(0, 1), ids[:, wanted[told]].flatten())


@torch.no_grad()
def agreement(model: Any, head: Tidar, text: Tensor, recipe: Recipe, batches: int = 4) -> list[float]:
    """Of each mask token of a block, how often it guesses what the causal rows choose there, on text as it stands."""
    random, output = torch.Generator().manual_seed(recipe.seed + 1), model.get_output_embeddings()
    right = torch.zeros(head.config.depth)
    for _ in range(batches):
        at, causal, rows = head.behind(_drawn(text, recipe, random), random)
        chosen, guessed = output(causal).argmax(-1), output(rows).argmax(-1).unflatten(1, (len(at), -1))
        for k in range(head.config.depth):
            right[k] += (guessed[:, :, k] == chosen[:, at + k + 1]).float().mean() / batches
    return right.tolist()


def tidar(target: str, text: Sequence[Path], output: Path, recipe: Recipe) -> dict[str, Any]:
    """Train from and to a checkpoint; the last tenth of the text is held out. Returns the figures, which are also
    written into the folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(target, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, trust_remote_code=False)
    words = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in text)
    ids = torch.tensor(tokenizer.encode(words, add_special_tokens=False))
    taught, held = ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :]
    head = made(model, output.name, recipe)
    before = agreement(model, head, held, recipe)
    progress = list(train(model, head, taught, recipe))
    figures = {
        "recipe": asdict(recipe),
        "tokens_of_text": len(ids),
        "first_loss": progress[0],
        "last_loss": progress[-1],
        "agreement_before": before,
        "agreement_after": agreement(model, head, held, recipe),
    }
    save(model, head, output)
    tokenizer.save_pretrained(output)
    (output / FIGURES).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


def made(model: Any, name: str, recipe: Recipe) -> Tidar:
    """A drafter for a model that is to be trained with it."""
    target = PlainTarget(name, model)
    return Tidar(Tidar.configure(target, depth=recipe.block), target)


def save(model: Any, head: Tidar, folder: Path) -> None:
    """Write a trained model and, below it, its drafter, which knows it as it is now."""
    model.save_pretrained(folder)
    head.config = replace(head.config, target=described(PlainTarget(head.config.target["name"], model)))
    save_head(head, folder / DRAFTER)


def _drawn(text: Tensor, recipe: Recipe, random: torch.Generator) -> Tensor:
    starts = torch.randint(0, len(text) - recipe.sequence, (recipe.batch,), generator=random)
    return torch.stack([text[start : start + recipe.sequence] for start in starts.tolist()])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a model to draft by diffusion beside talking on.")
    parser.add_argument("target", help="checkpoint that it begins as: folder or hub id")
    parser.add_argument("text", type=Path, nargs="+", help="text files")
    parser.add_argument("--output", type=Path, required=True, help="folder of the model and its drafter")
    for name, kind, text in (
        ("steps", int, "optimiser steps"),
        ("batch", int, "sequences a step"),
        ("sequence", int, "tokens a sequence"),
        ("block", int, "mask tokens that are filled at once"),
        ("masked", float, "what the loss of mask tokens weighs beside that of the text"),
        ("learning-rate", float, "of AdamW, decayed by a cosine"),
        ("seed", int, "of everything random"),
    ):
        default = getattr(Recipe, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} (default {default})")
    given = vars(parser.parse_args(arguments))
    print(json.dumps(tidar(given.pop("target"), given.pop("text"), given.pop("output"), Recipe(**given)), indent=1))


if __name__ == "__main__":
    main()
