"""Train the embedded reader: ``python -m eval.reader.train --out DIR --minutes 60``.

Text → tokenizer → structured initialisation → training on made-up questions, on a CPU. Every step's examples
are drawn from a generator keyed by (seed, step), so a run that is stopped and resumed (``--resume``) goes on
exactly as if it had not been. The curriculum goes by mastery: contexts grow one stage when the running
accuracy of references at the current stage passes `MASTERED`; earlier stages stay in the mix.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from eval.reader.corpus import common_words, default_folders, documents
from eval.reader.data import Maker
from eval.reader.initialise import CODE, HEAD, MAX_POSITIONS, at, build
from eval.reader.packing import Batch, Packer
from service.reader import write_manifest
from service.reader.tokenizer import save as save_tokenizer
from service.reader.tokenizer import train as train_tokenizer

log = logging.getLogger(__name__)

STAGES = (300, 600, 1200, 2400, 4800)
"""Tokens of a context, by stage."""
MASTERED = 0.9
QUESTIONS = 16
"""Questions asked of one context at a time, each in a branch of its own that sees the context only."""
CIRCUIT = 0.1
"""Initial weights of greater magnitude belong to the circuit; the random ones are smaller."""
STEM_SIZE, MLP_SIZE = 0.2, 0.01


@dataclass
class Recipe:
    """Everything a run depends on besides its text."""

    seed: int = 0
    rate: float = 2e-3
    steps: int = 900
    warmup: int = 20
    held_out: int = 250
    stages: tuple[int, ...] = STAGES
    text: list[str] = field(default_factory=list)


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    stage: int = 0
    mastery: float = 0.0
    tokens: int = 0


def loss_of(model: Any, batch: Batch) -> tuple[Tensor, float, float]:
    """Loss (references half of it), and the share of references and of copied tokens that are right.

    Layer 0 stands as initialised: it runs without gradients, and the embeddings learn past it.
    """
    allowed = batch.mask()
    mask = torch.zeros(allowed.shape).masked_fill_(~allowed, float("-inf"))
    inner = model.model
    hidden = inner.embed_tokens(batch.ids[None])
    rotary = inner.rotary_emb(hidden, batch.positions[None])
    first, *rest = inner.layers
    with torch.no_grad():
        added = first(hidden, attention_mask=mask, position_embeddings=rotary) - hidden
    hidden = hidden + added
    for layer in rest[:-1]:
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
    spoken = inner.norm(_last(rest[-1], hidden[0], batch.rows, allowed[0, 0, batch.rows]))[:, :CODE]
    logits = spoken @ inner.embed_tokens.weight[:, :CODE].detach().T
    losses = functional.cross_entropy(logits, batch.targets, reduction="none")
    right = logits.detach().argmax(-1) == batch.targets
    chosen, copied = batch.is_reference, ~batch.is_reference
    loss = losses[chosen].mean() + losses[copied].mean()
    return loss, right[chosen].float().mean().item(), right[copied].float().mean().item()


def _last(layer: Any, hidden: Tensor, rows: Tensor, allowed: Tensor) -> Tensor:
    """Output [N, HIDDEN] of the last layer (one without rotary positions) at `rows` alone, its only readers."""
    attn, inputs = layer.self_attn, layer.input_layernorm(hidden)
    split = (-1, attn.head_dim)
    q = attn.q_proj(inputs[rows]).unflatten(-1, split).transpose(0, 1)
    k = attn.k_proj(inputs).unflatten(-1, split).transpose(0, 1)
    v = attn.v_proj(inputs).unflatten(-1, split).transpose(0, 1)
    seen = functional.scaled_dot_product_attention(q[None], k[None], v[None], allowed, enable_gqa=True)[0]
    middle = hidden[rows] + attn.o_proj(seen.transpose(0, 1).flatten(1))
    return middle + layer.mlp(layer.post_attention_layernorm(middle))


def rate_at(step: int, recipe: Recipe) -> float:
    """Learning rate: linear warm-up, then linear decay to a tenth at the last step."""
    left = max(0.0, 1.0 - step / recipe.steps)
    return recipe.rate * min(1.0, (step + 1) / recipe.warmup) * (0.1 + 0.9 * left)


class Trainer:
    """A run: model, optimiser, progress, and the text it draws from."""

    def __init__(self, model: Any, tokenizer: Any, texts: list[list[str]], recipe: Recipe) -> None:
        self.model, self.recipe, self.progress = model, recipe, Progress()
        self.packer = Packer(tokenizer)
        self.maker = Maker(texts, self.packer.length)
        self.trained = _open(model)
        self.optimiser = torch.optim.AdamW(
            [parameter for parameter, _ in self.trained], recipe.rate, (0.9, 0.98), weight_decay=0.0
        )

    def batch(self, step: int) -> tuple[Batch, bool]:
        """The batch of a step, and whether its context is of the newest stage."""
        rng = random.Random(f"{self.recipe.seed}:{step}")
        newest = self.progress.stage
        stage = newest if rng.random() < 0.4 else rng.randint(0, newest)
        example = self.maker.example(rng, self.recipe.stages[stage], QUESTIONS)
        return self.packer.pack(example, rng), stage == newest

    def step(self) -> tuple[float, float, float]:
        """One step; returns loss and the shares of references and copied tokens that were right."""
        p = self.progress
        batch, newest = self.batch(p.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(p.step, self.recipe)
        loss, chosen, copied = loss_of(self.model, batch)
        loss.backward()
        self._move()
        self.optimiser.zero_grad(set_to_none=True)
        p.step += 1
        p.tokens += len(batch.ids)
        if newest:
            p.mastery += 0.05 * (chosen - p.mastery)
            if p.mastery > MASTERED and p.stage + 1 < len(self.recipe.stages):
                p.stage, p.mastery = p.stage + 1, 0.5
        return float(loss.detach()), chosen, copied

    @torch.no_grad()
    def _move(self) -> None:
        """One step of Adam, each weight's part of it scaled by its size."""
        before = [parameter.clone() for parameter, _ in self.trained]
        self.optimiser.step()
        for (parameter, size), old in zip(self.trained, before, strict=True):
            parameter.sub_(old).mul_(size).add_(old)

    def save(self, folder: Path) -> None:
        """A checkpoint to resume from."""
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "progress": asdict(self.progress),
        }
        torch.save(state, folder / "checkpoint.tmp")
        (folder / "checkpoint.tmp").replace(folder / "checkpoint.pt")

    def load(self, folder: Path) -> None:
        """Go on from the checkpoint in `folder`."""
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.progress = Progress(**state["progress"])


def _open(model: Any) -> list[tuple[nn.Parameter, Tensor]]:
    """The parameters that learn, each with the sizes of its weights: what a step of the learning rate one moves.

    Adam moves every weight it is given by about the learning rate, however small its gradient; given all, it
    drowned the circuit in small changes (from 51% of references right to 26% in 300 steps). So the weights that
    the circuit is made of behind layer 0 move in proportion to their initial size, the stems and their flags
    in the embeddings and the MLPs by small steps, and all others not at all. Token codes stay as drawn, so
    that tokens never seen in training are matched and copied as well.
    """
    model.requires_grad_(False)
    table = model.model.embed_tokens.weight
    stems = torch.zeros(model.config.hidden_size)
    stems[at("STEM") : at("STEM") + HEAD] = STEM_SIZE
    trained = [(table, stems.expand_as(table))]
    for layer in model.model.layers[1:]:
        for name, parameter in layer.named_parameters():
            if "self_attn" in name:
                size = parameter.detach().abs()
                trained.append((parameter, torch.where(size > CIRCUIT, size, 0.0)))
            elif "mlp" in name:
                trained.append((parameter, torch.full_like(parameter, MLP_SIZE)))
    for parameter, _ in trained:
        parameter.requires_grad_(True)
    return trained


def export(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the model (weights stored as float16, to be computed in float32), tokenizer and manifest."""
    stored = copy.deepcopy(model).half()
    stored.config.dtype = "float16"
    stored.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    write_manifest(folder)


def prepare(recipe: Recipe, folder: Path, *, resume: bool = False) -> tuple[Any, Any, list[list[str]]]:
    """Model, tokenizer and training documents; text and tokenizer are kept in `folder` for a resumed run."""
    kept = folder / "texts.json"
    if resume:
        from transformers import AutoTokenizer

        texts = json.loads(kept.read_text(encoding="utf-8"))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    else:
        texts = documents(map(Path, recipe.text), seed=recipe.seed) if recipe.text else []
        texts += documents(default_folders(), most_per_file=60, limit=40_000, seed=recipe.seed)
        random.Random(recipe.seed).shuffle(texts)
        kept.write_text(json.dumps(texts), encoding="utf-8")
        flat = (" " + sentence for document in texts for sentence in document)
        raw = train_tokenizer([*flat, *common_words()])
        tokenizer = save_tokenizer(raw, folder, MAX_POSITIONS)
    log.info("text: %d documents, %d sentences", len(texts), sum(map(len, texts)))
    model = build(tokenizer, (sentence for document in texts for sentence in document), recipe.seed)
    return model, tokenizer, texts[recipe.held_out :]


def run(trainer: Trainer, folder: Path, minutes: float, every: int = 50) -> Iterator[dict[str, float]]:
    """Train for so many minutes or to the recipe's last step; yields one report every `every` steps."""
    deadline = time.monotonic() + 60.0 * minutes
    reports: list[tuple[float, float, float]] = []
    while trainer.progress.step < trainer.recipe.steps and time.monotonic() < deadline:
        reports.append(trainer.step())
        if len(reports) == every:
            loss, chosen, copied = (sum(column) / every for column in zip(*reports, strict=True))
            p = trainer.progress
            yield {"step": p.step, "stage": p.stage, "tokens": p.tokens, "loss": loss, "references": chosen,
                   "copied": copied}  # fmt: skip
            reports.clear()
            trainer.save(folder)
    trainer.save(folder)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m eval.reader.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the model")
    parser.add_argument("--text", nargs="*", default=[], help="folders of prose besides the Python installation's")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--rate", type=float, default=Recipe.rate)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from the text and checkpoint in --out")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(seed=options.seed, rate=options.rate, steps=options.steps, text=options.text)
    model, tokenizer, texts = prepare(recipe, options.out, resume=options.resume)
    trainer = Trainer(model, tokenizer, texts, recipe)
    if options.resume and (options.out / "checkpoint.pt").exists():
        trainer.load(options.out)
    for report in run(trainer, options.out, options.minutes):
        log.info(" ".join(f"{key}={value:.4g}" for key, value in report.items()))
    export(trainer.model.eval(), tokenizer, options.out / "model")


if __name__ == "__main__":
    main()
