"""FastDraft (arXiv 2411.11055): a small draft model from nothing, pre-trained on text before it is aligned.

It has the target's class and vocabulary and a width and a depth of its own. Pre-training is plain next-token prediction
on text; the alignment with the target's own answers is `distill`'s, with which it makes one command.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from drafters.errors import DrafterError
from drafters.training.descent import descended


def small(target: Any, layers: int, hidden: int) -> Any:
    """A model of the target's class and vocabulary with `layers` layers of width `hidden`, of random weights.

    Heads keep their size and their grouping, so that there are fewer; MLPs keep their proportion. Raises DrafterError
    where the width is no multiple of a head's, or is not below the target's.
    """
    config = copy.deepcopy(target.config)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    group = config.num_attention_heads // config.num_key_value_heads
    step = size * group
    if hidden % step or not 0 < hidden < config.hidden_size:
        raise DrafterError(
            f"a draft model of this target's kind has a width that is a multiple of {step} below {config.hidden_size}, "
            f"not {hidden}"
        )
    config.intermediate_size = max(step, config.intermediate_size * hidden // config.hidden_size)
    config.num_attention_heads, config.num_key_value_heads = hidden // size, hidden // step
    config.hidden_size, config.head_dim = hidden, size
    shortened(config, layers)
    return type(target)(config).float()


def shortened(config: Any, layers: int) -> None:
    """Have a configuration say `layers` layers, wherever it says it."""
    config.num_hidden_layers = layers
    for name in ("layer_types", "no_rope_layers"):
        if getattr(config, name, None):
            setattr(config, name, getattr(config, name)[:layers])


def pretrain(draft: Any, text: Tensor, steps: int, recipe: Any) -> Iterator[float]:
    """Train `draft` in place to go on as text int64 [n] does; yields each step's loss in nats a token. Of the `Recipe`
    it takes batch, sequence, learning rate and seed."""
    generator = torch.Generator().manual_seed(recipe.seed)

    def loss() -> Tensor:
        starts = torch.randint(0, len(text) - recipe.sequence, (recipe.batch,), generator=generator)
        ids = torch.stack([text[start : start + recipe.sequence + 1] for start in starts.tolist()]).to(draft.device)
        logits = draft(input_ids=ids[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

    draft.train()
    yield from descended(draft, loss, steps, recipe.learning_rate, weight_decay=0.1)
