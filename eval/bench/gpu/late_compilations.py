"""What a GPU would have to compile after the service has said that it is ready: printed, and nothing where all is well.

A small model runs its start, then steps of many lengths and companies, with the kernels of a GPU, none of which is
launched or compiled: Triton's own key of each launch says whether one like it came before.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from eval.bench.gpu.hopper import keyed


def late(seed: int = 0) -> set[str]:
    """Keys of launches after the start that none at the start had."""
    import numpy as np
    import torch

    from drafters.sampling import device
    from drafters.tree import EMPTY
    from service.engine.params import SamplingParams
    from service.engine.runner import cuda_graphs, fused_gpu_layers
    from service.engine.runner.model_runner import ModelRunner
    from service.engine.sampling.sampler import RowKeys
    from sparse_attn import backend
    from sparse_attn.kernels import triton_kernels
    from sparse_attn.kv.pool import KVPool
    from sparse_attn.plan.forward_plan import chunks_apart, plan_forward

    def plan(attn: Any, layer: int, rows: Any) -> Any:  # as for tensors of a GPU
        dense = attn.policies is None and attn.earlier is None and (attn.needed is None or layer == 0)
        return chunks_apart(attn, layer, rows) if dense else plan_forward(attn, layer, rows)

    def choose(logits: Any, keys: Any) -> Any:
        columns = device.packed([np.zeros(len(logits)) for _ in range(5)])
        return device.choose(logits, columns, any_cut=keys.any_cut)

    for module in (backend, fused_gpu_layers):
        module.select_kernels = lambda *_: triton_kernels()  # type: ignore[attr-defined]
    backend.plan_forward = plan  # type: ignore[attr-defined]
    cuda_graphs.choose_tokens = choose  # type: ignore[attr-defined]
    model = _model()
    pool = KVPool(backend.attach(model), 400, 64, torch.bfloat16)
    fused_gpu_layers.fuse_gpu_layers(model)
    with keyed() as keys, torch.inference_mode():
        runner = cuda_graphs.GraphedRunner(model, pool, cuda_graphs.make_buckets(4), 200, cuda_graphs.run_eagerly)
        runner.run_the_rest()
        before = set(keys)
        for slices in _steps(random.Random(seed), pool):
            for logits in (ModelRunner.run(runner, slices).logits, runner.run(slices).logits):
                for top_p in (1.0, 0.5):
                    params = [SamplingParams(temperature=1.0, top_p=top_p)]
                    choose(logits, RowKeys(params, [EMPTY], [1]))
    return keys - before


def _model() -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama", hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=16, vocab_size=64, max_position_embeddings=16384,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def _steps(chance: random.Random, pool: Any) -> Iterator[list[Any]]:
    """Decodes, drafts and at most one chunk, of any lengths."""
    from drafters.tree import DraftTree
    from service.engine.params import SamplingParams
    from service.engine.request import Request
    from service.engine.step import Slice

    for n in range(24):
        slices = []
        for s in range(chance.randint(1, 4)):
            start = chance.choice([0, 1, 63, 64, 700, 5000, 9000])
            request = Request(f"{n}.{s}", [5] * 8, SamplingParams())
            nodes = chance.choice([0, 0, 1, 5, 9, 33, 64])
            tree = DraftTree.chain([5] * nodes) if nodes else None
            request.pages = [(page,) for page in range((start + 65) // 64 + 2)]
            slices.append(Slice(request, start, [5], samples=True, tree=tree))
        if chance.random() < 0.7:
            rows, start = chance.choice([2, 7, 20, 127, 128, 129, 300]), chance.choice([0, 17, 640, 3000])
            request = Request(f"{n}.p", [5] * rows, SamplingParams())
            request.pages = [(page,) for page in range((start + rows) // 64 + 2)]
            slices.append(Slice(request, start, [5] * rows, samples=True))
        yield slices


if __name__ == "__main__":
    for key in sorted(late()):
        print(key)
