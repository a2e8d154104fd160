"""transformers on the same weights, token by token: `generate` with sdpa, its prompt lookup, its continuous batching.

Where weights are random, speed does not depend on what a model has learnt.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer

from eval.bench.runner import Timing, ask, build, plain
from eval.bench.timer import in_turn
from service.engine.loading.checkpoint import EMBEDDED, prepare
from service.reader import MODEL_DIR

MODEL = "random Llama, 27 M parameters, 8 layers, 8/4 heads of 64, float32"
VOCABULARY = 2048
KV_HEADROOM = 256  # tokens


def random_llama(max_length: int, vocabulary: int = VOCABULARY, **changes: Any) -> LlamaForCausalLM:
    """A Llama of 27 M parameters with seeded random weights: 8 layers, 8 query and 4 KV heads of 64, float32.

    ``changes`` are further values of its `LlamaConfig`.
    """
    torch.manual_seed(0)
    values = {
        "vocab_size": vocabulary, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": max_length,
        "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**values | changes)).eval()


def compare(context: int, new_tokens: int, repeats: int) -> tuple[Timing, Timing]:
    """(transformers with sdpa, the engine, dense and without a drafter) on one prompt of `context` random ids."""
    length = context + new_tokens + KV_HEADROOM
    model = random_llama(length)
    prompt = torch.randint(2, VOCABULARY, (context,), generator=torch.Generator().manual_seed(1)).tolist()
    theirs, ours = Timing(), Timing()
    with build(prepare("random-llama-27m", copy.deepcopy(model)), 2 * length) as engine:
        model.set_attn_implementation("sdpa")
        ways = {
            "transformers": lambda: _generate(model, prompt, new_tokens, theirs),
            "folio": lambda: ask(engine, prompt, plain(new_tokens), ours),
        }
        in_turn(ways, repeats)
    return theirs, ours


class _Stamps(BaseStreamer):
    """A streamer of `generate`: notes when each token comes; the first call brings the prompt."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.at.append(time.perf_counter())

    def end(self) -> None:
        pass


@torch.inference_mode()
def _generate(model: Any, prompt: list[int], new_tokens: int, timing: Timing) -> None:
    stamps, ids = _Stamps(), torch.tensor([prompt])
    began = time.perf_counter()
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=1,
        streamer=stamps,
    )
    times = [at - began for at in stamps.at[1:]]
    timing.add(times, output[0, len(prompt) :].tolist(), {"kernels": ["transformers sdpa"]})


def load(name: str) -> Any:
    """transformers' own model of that name, in float32."""
    path = str(MODEL_DIR) if name == EMBEDDED else name
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@torch.inference_mode()
def answer(
    model: Any, asked: Sequence[list[int]], max_tokens: int, stops: bool, **options: Any
) -> tuple[list[list[int]], float]:
    """Each prompt's greedy tokens, and tokens per second of them all.

    A prompt's first forward is not counted, but all tokens except the first are, those included that prompt lookup had
    accepted in it. It cannot be spared by giving `generate` the prompt's KV: assisted generation runs the whole prompt
    again behind it, at wrong positions (transformers 5.23).
    """
    taken, answers = 0.0, []
    ended: list[float] = []
    hook = model.register_forward_hook(lambda *_: ended.append(time.perf_counter()))
    try:
        for prompt in asked:
            ids = torch.tensor([prompt])
            ended.clear()
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=max_tokens,
                eos_token_id=model.config.eos_token_id if stops else None,
                **options,
            )
            taken += time.perf_counter() - ended[0]
            answers.append(out[0, len(prompt) :].tolist())
    finally:
        hook.remove()
    return answers, sum(len(ids) - 1 for ids in answers) / taken


def answer_batch(model: Any, prompts: list[list[int]], new_tokens: int) -> tuple[list[list[int]], float]:
    """What transformers' continuous batching generates, and the seconds it takes; warmed by one prompt."""
    model.set_attn_implementation("sdpa")
    config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    model.generate_batch(inputs=prompts[:1], generation_config=config, progress_bar=False)
    began = time.perf_counter()
    outputs = model.generate_batch(inputs=prompts, generation_config=config, progress_bar=False)
    taken = time.perf_counter() - began
    by_number = sorted(outputs.values(), key=lambda output: int("".join(filter(str.isdigit, output.request_id)) or 0))
    return [list(output.generated_tokens) for output in by_number], taken
