"""How many kernels a piece of work launches on a GPU, counted on any machine.

An operation of torch that computes or copies is a launch, one that only looks at a tensor otherwise or makes room is
none; a Triton kernel is one, whatever its interpreter does meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

_FREE = {
    "view", "_unsafe_view", "reshape", "t", "transpose", "permute", "slice", "select", "unsqueeze", "squeeze", "expand",
    "detach", "alias", "as_strided", "split", "split_with_sizes", "unbind", "unflatten", "flatten", "chunk",
    "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "is_same_size",
    "_reshape_alias",
}  # fmt: skip


class _Operations(TorchDispatchMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in _FREE:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Launches by name within this block; of Triton's kernels only under its interpreter."""
    from triton.runtime.interpreter import GridExecutor

    found: Counter[str] = Counter()
    run: Any = GridExecutor.__call__

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        found[self.fn.__name__] += 1
        with _disable_current_modes():
            return run(self, *args, **kwargs)

    GridExecutor.__call__ = launch  # type: ignore[method-assign]
    try:
        with _Operations(found), torch.inference_mode():
            yield found
    finally:
        GridExecutor.__call__ = run  # type: ignore[method-assign]


def layer_launches(kv: torch.dtype = torch.float32, model_type: str = "llama") -> Counter[str]:
    """What a decode step launches a layer in a model of that type, by operation and kernel; under the interpreter."""
    return _step_launches(2, kv, model_type) - _step_launches(1, kv, model_type)


def _step_launches(layers: int, kv: torch.dtype, model_type: str) -> Counter[str]:
    from transformers import AutoConfig, AutoModelForCausalLM

    from service.engine.params import SamplingParams
    from service.engine.request import Request
    from service.engine.runner.fused_gpu_layers import fuse_gpu_layers
    from service.engine.runner.model_runner import ModelRunner
    from service.engine.step import Slice
    from sparse_attn.backend import attach
    from sparse_attn.kv.pool import KVPool

    config = AutoConfig.for_model(
        model_type, hidden_size=32, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, vocab_size=64,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    runner = ModelRunner(model, KVPool(attach(model), 4, 16, kv))
    fuse_gpu_layers(model)
    request = Request("r", [5, 6, 7], SamplingParams())
    request.pages = [(0,)]
    with counted() as found:
        runner.run([Slice(request, 2, [7], samples=True)])
    return found
