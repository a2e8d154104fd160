"""A stand-in for CUDA graphs on a CPU: what was launched is launched again on the same tensors, and no host code runs.

As a graph it knows addresses and values of the moment of capture alone: a replay reads what lies in the captured
tensors and writes where the captured results lie. What a graph cannot hold it refuses as CUDA does: a host that reads a
tensor, and shapes that follow from a tensor's values. Operations of torch and launches under Triton's interpreter are
captured, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from service.engine.runner.pieces import record_whole

_READS = {"tolist", "item", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__", "cpu"}
_SHAPED_BY_VALUES = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "bincount"}
_ROOM = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


def refuse(name: str) -> None:
    raise RuntimeError(f"operation not permitted when stream is capturing: {name}")


class _Reads(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _READS:
            refuse(func.__name__)
        return func(*args, **(kwargs or {}))


class _Launches(TorchDispatchMode):
    def __init__(self, tape: list[Callable[[], None]]) -> None:
        super().__init__()
        self.tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = func.overloadpacket.__name__, kwargs or {}
        if name in _SHAPED_BY_VALUES:
            refuse(name)
        if name.startswith("index") and any(getattr(x, "dtype", None) == torch.bool for x in tree_leaves(args[1:])):
            refuse(f"{name} by a mask")
        out = func(*args, **given)
        if name not in _ROOM:
            self.tape.append(lambda: _again(func, args, given, out))
        return out


def _again(func: Any, args: Any, kwargs: Any, out: Any) -> None:
    for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
        if isinstance(old, Tensor):
            assert (old.shape, old.stride(), old.dtype) == (new.shape, new.stride(), new.dtype)
            if old.data_ptr() != new.data_ptr():  # no view, nor in place
                old.copy_(new)


class Tape:
    """`Capture` and `Recorder`.

    Attributes:
        captured, replayed: pieces, and how many times one was launched again.
    """

    def __init__(self) -> None:
        self.captured = self.replayed = 0
        self._open: tuple[list[Callable[[], None]], ExitStack] | None = None

    def __call__(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        step()
        return record_whole(self, step)

    def begin(self) -> None:
        tape: list[Callable[[], None]] = []
        stack = ExitStack()
        stack.enter_context(_kernels_recorded(tape))
        stack.enter_context(_Launches(tape))
        stack.enter_context(_Reads())
        self._open = tape, stack
        self.captured += 1

    def end(self) -> Callable[[], None]:
        assert self._open is not None
        (tape, stack), self._open = self._open, None
        stack.close()

        def replay() -> None:
            self.replayed += 1
            for launch in tape:
                launch()

        return replay


def _kernels_recorded(tape: list[Callable[[], None]]) -> ExitStack:
    """Launches of Triton's interpreter go on the tape too."""
    stack = ExitStack()
    try:
        from triton.runtime.interpreter import GridExecutor
    except ImportError:
        return stack
    run: Any = GridExecutor.__call__

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        def again() -> None:
            run(self, *args, **kwargs)

        with _disable_current_modes(), torch._C.DisableTorchFunction():
            again()
        tape.append(again)

    def restore() -> None:
        GridExecutor.__call__ = run  # type: ignore[method-assign]

    GridExecutor.__call__ = launch  # type: ignore[method-assign]
    stack.callback(restore)
    return stack


@contextmanager
def kernels_of_a_gpu() -> Iterator[None]:
    """Attention, layers, pages and their statistics as on a GPU, under Triton's interpreter, in place of a CPU's."""
    from service.engine.runner import fused_gpu_layers
    from sparse_attn import backend
    from sparse_attn.kernels import triton_kernels
    from sparse_attn.kernels.triton.page_stats import update_page_stats
    from sparse_attn.kv import pool
    from sparse_attn.kv.page_stats import PageStats

    def update(stats: PageStats, layer: int, pages: Tensor, slots: Tensor, scales: Tensor | None = None) -> None:
        update_page_stats(stats.kmin[layer], stats.kmax[layer], pages, slots, scales)

    with ExitStack() as stack:
        for module in (backend, fused_gpu_layers, pool):
            stack.enter_context(patch.object(module, "select_kernels", lambda *_: triton_kernels()))
        stack.enter_context(patch.object(PageStats, "update", update))
        yield


@contextmanager
def few_programs() -> Iterator[None]:
    """Launches are cut into few programs, as the interpreter runs them one by one, and tuned at short contexts."""
    from service.engine.runner import cuda_graphs
    from sparse_attn.kernels import work

    with patch.object(work, "PROGRAMS", 8), patch.object(cuda_graphs, "TUNING_TOKENS", 64):
        yield
