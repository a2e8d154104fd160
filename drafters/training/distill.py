"""Distil a draft model from the target's own outputs: ``python -m drafters.training.distill``.

DistillSpec (arXiv 2310.08461) in small: the target continues prompts, or the draft model does, and the draft model
learns the target's whole distribution at every position of those continuations, not the text alone, for what counts is
agreement. How often a draft is accepted at temperature 1 is one minus the total variation between the two, so that is
what is reported on held-out text before and after. Which of `DIVERGENCES` it lowers is a choice: the paper finds that
the best depends on the task and on how tokens are drawn.

It starts from the target's first layers, from a draft model that is given, or from a small one that was pre-trained
here (`fastdraft`). Without a good deal of text and time it will not beat copying from the documents; it pays where
answers do not repeat them.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drafters.errors import DrafterError
from drafters.training.descent import descended
from drafters.training.fastdraft import pretrain, shortened, small

DISTILLATION = "distillation.json"
"""The figures of the training, in the draft model's folder."""


@dataclass(frozen=True)
class Recipe:
    """What training does.

    sequence     tokens of a training sequence: a prompt of half of them from the text, the rest the target's own
    sampling     temperature of the target's continuations; 0 is greedy
    on_policy    share of sequences continued by the draft model in place of the target (DistillSpec's mixture)
    divergence   one of `DIVERGENCES`
    hidden       width of a draft model from nothing; 0: it has the target's first layers
    pretrain     steps on the text as it stands, before
    """

    steps: int = 200
    batch: int = 8
    sequence: int = 128
    learning_rate: float = 5e-4
    sampling: float = 1.0
    on_policy: float = 0.0
    divergence: str = "forward_kl"
    layers: int = 1
    hidden: int = 0
    pretrain: int = 0
    seed: int = 0


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log probabilities [..., V]."""
    return (p.exp() * (p - q)).sum(-1)


def _jensen_shannon(wanted: Tensor, given: Tensor) -> Tensor:
    middle = torch.logaddexp(wanted, given) - math.log(2)
    return (_kl(wanted, middle) + _kl(given, middle)) / 2


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": _kl,
    "reverse_kl": lambda wanted, given: _kl(given, wanted),
    "jensen_shannon": _jensen_shannon,
    "total_variation": lambda wanted, given: (wanted.exp() - given.exp()).abs().sum(-1) / 2,
}
"""Of the target's log probabilities [..., V] and the draft model's; each [...]."""


def smaller(target: Any, layers: int) -> Any:
    """A model of the target's class and width with fewer layers: embeddings, head, final norm and the first
    `layers` layers are the target's, as self-speculating models do it (LayerSkip, arXiv 2404.16710)."""
    config = copy.deepcopy(target.config)
    if not 1 <= layers < config.num_hidden_layers:
        raise DrafterError(
            f"a draft model has 1 to {config.num_hidden_layers - 1} layers of the target's, not {layers}"
        )
    shortened(config, layers)
    draft = type(target)(config).to(target.dtype)
    weights = target.state_dict()
    draft.load_state_dict({name: weights[name] for name in draft.state_dict()})
    return draft


def train(target: Any, draft: Any, text: Tensor, recipe: Recipe) -> Iterator[float]:
    """Train `draft` in place; yields the loss of each step, in nats a token.

    target, draft: causal models of the same vocabulary on the same device; text int64 [n], n > recipe.sequence:
    token ids that prompts are cut from. Raises DrafterError where the vocabularies differ or the text is too short.
    """
    _check(target, draft, text, recipe)
    generator = torch.Generator().manual_seed(recipe.seed)
    target.eval()

    def loss() -> Tensor:
        own = float(torch.rand(1, generator=generator)) < recipe.on_policy
        ids = _continued(draft if own else target, _prompts(text, recipe, generator), recipe)
        with torch.no_grad():
            wanted = torch.log_softmax(_logits(target, ids).float(), -1)
        draft.train()
        given = torch.log_softmax(_logits(draft, ids).float(), -1)
        half = recipe.sequence // 2
        return DIVERGENCES[recipe.divergence](wanted, given)[:, half - 1 :].mean()

    yield from descended(draft, loss, recipe.steps, recipe.learning_rate, weight_decay=0.01)


@torch.no_grad()
def agreement(target: Any, draft: Any, text: Tensor, recipe: Recipe, batches: int = 4) -> dict[str, float]:
    """Expected acceptance on the target's continuations of held-out text: at temperature 1 (one minus the total
    variation) and greedy (equal argmax)."""
    _check(target, draft, text, recipe)
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    sampled = greedy = 0.0
    for _ in range(batches):
        ids = _continued(target, _prompts(text, recipe, generator), recipe)
        half = recipe.sequence // 2
        p = _logits(target, ids)[:, half - 1 :].float()
        q = _logits(draft, ids)[:, half - 1 :].float()
        sampled += float(torch.minimum(p.softmax(-1), q.softmax(-1)).sum(-1).mean()) / batches
        greedy += float((p.argmax(-1) == q.argmax(-1)).float().mean()) / batches
    return {"sampled": sampled, "greedy": greedy}


def distil(target: str, text: Sequence[Path], output: Path, recipe: Recipe, draft: str | None = None) -> dict[str, Any]:
    """Distil from and to checkpoints; the last tenth of the text is held out. Returns the figures, which are also
    written beside the draft model, as DISTILLATION."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(target, trust_remote_code=False)
    teacher = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, trust_remote_code=False).eval()
    if draft is not None:
        student = AutoModelForCausalLM.from_pretrained(draft, trust_remote_code=False)
    elif recipe.hidden:
        student = small(teacher, recipe.layers, recipe.hidden)
    else:
        student = smaller(teacher, recipe.layers)
    words = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in text)
    ids = torch.tensor(tokenizer.encode(words, add_special_tokens=False))
    cut = len(ids) * 9 // 10
    if recipe.pretrain:
        _told(pretrain(student, ids[:cut], recipe.pretrain, recipe))
    before = agreement(teacher, student, ids[cut:], recipe)
    losses = _told(train(teacher, student, ids[:cut], recipe))
    figures = {
        "recipe": asdict(recipe),
        "tokens_of_text": len(ids),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "agreement_before": before,
        "agreement_after": agreement(teacher, student, ids[cut:], recipe),
    }
    student.save_pretrained(output)
    tokenizer.save_pretrained(output)
    (output / DISTILLATION).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


def _told(losses: Iterator[float]) -> list[float]:
    """All losses, every twentieth printed."""
    found = []
    for step, loss in enumerate(losses):
        found.append(loss)
        if step % 20 == 0:
            print(f"step {step}: {loss:.3f} nats a token", flush=True)
    return found


def _check(target: Any, draft: Any, text: Tensor, recipe: Recipe) -> None:
    sizes = [model.get_output_embeddings().weight.shape[0] for model in (target, draft)]
    if sizes[0] != sizes[1]:
        raise DrafterError(f"the draft model has {sizes[1]} token ids, the target {sizes[0]}: they must share them")
    if recipe.divergence not in DIVERGENCES:
        raise DrafterError(f"there is no divergence {recipe.divergence!r}; there are {', '.join(DIVERGENCES)}")
    if len(text) <= recipe.sequence:
        raise DrafterError(f"{len(text)} tokens of text are too few for sequences of {recipe.sequence}")


def _prompts(text: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    half = recipe.sequence // 2
    starts = torch.randint(0, len(text) - half, (recipe.batch,), generator=generator)
    return torch.stack([text[start : start + half] for start in starts.tolist()])


@torch.no_grad()
def _continued(model: Any, prompts: Tensor, recipe: Recipe) -> Tensor:
    """Prompts and the model's continuations, int64 [batch, sequence]."""
    model.eval()
    return model.generate(
        prompts.to(model.device),
        attention_mask=torch.ones_like(prompts).to(model.device),
        max_new_tokens=recipe.sequence - prompts.shape[1],
        min_new_tokens=recipe.sequence - prompts.shape[1],
        do_sample=recipe.sampling > 0,
        **({"temperature": recipe.sampling, "top_k": 0} if recipe.sampling > 0 else {}),
    )


def _logits(model: Any, ids: Tensor) -> Tensor:
    """What the model says after each token but the last [batch, sequence - 1, V]."""
    return model(input_ids=ids, use_cache=False).logits[:, :-1]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Distil a draft model from a target's own outputs.")
    parser.add_argument("target", help="checkpoint of the target: folder or hub id")
    parser.add_argument("text", type=Path, nargs="+", help="text files that prompts are cut from")
    parser.add_argument("--output", type=Path, required=True, help="folder for the draft model")
    parser.add_argument("--draft", help="checkpoint to start from; default: the target's first layers")
    for name, kind, text in (
        ("divergence", str, f"that is lowered: {', '.join(DIVERGENCES)}"),
        ("layers", int, "layers of the draft model"),
        ("hidden", int, "width of a draft model from nothing (FastDraft); 0: it has the target's first layers"),
        ("pretrain", int, "steps of next-token prediction on the text before"),
        ("steps", int, "optimiser steps"),
        ("batch", int, "sequences a step"),
        ("sequence", int, "tokens a sequence"),
        ("learning-rate", float, "of AdamW, decayed by a cosine"),
        ("sampling", float, "temperature of the continuations"),
        ("on-policy", float, "share of steps on the draft model's own continuations"),
        ("seed", int, "of everything random"),
    ):
        default = getattr(Recipe, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} (default {default})")
    given = vars(parser.parse_args(arguments))
    target, text, output, draft = (given.pop(name) for name in ("target", "text", "output", "draft"))
    print(json.dumps(distil(target, text, output, Recipe(**given), draft), indent=1))


if __name__ == "__main__":
    main()
