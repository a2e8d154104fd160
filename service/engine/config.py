"""How an engine is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EngineConfig:
    """How an engine is built.

    Attributes:
        dtype: of weights and KV: float64, float32, bfloat16 or float16.
        device: cpu, cuda or cuda:N.
        kv_memory: bytes for the pages of KV.
        kv_dtype: of the pages: auto for the model's, or int8 with a scale a token and head.
        kv_groups: whose streaming heads get pages of their own, which they free: a policy, auto for those of
            ``attention``, or none.
        page_size: tokens a page.
        max_model_len: tokens a request may hold; None for what the model was made for.
        max_step_tokens: rows of one forward, hence the longest prefill chunk.
        max_running, max_waiting: requests with pages, and in the queue.
        prefix_cache: keep the pages of finished requests for prompts that begin alike.
        host_memory: bytes of host memory for pages that the prefix cache evicts; 0 for none.
        warm_folder: where ``warm`` keeps the pages of documents across restarts; None for nowhere.
        attention: policy of requests that name none.
        drafter: of requests that name none.
        draft_model: folder or hub id of a checkpoint for the drafters that want one, or None.
        tensor_parallel: ranks that share the model's heads (`service.engine.runner.ranks`); kv_memory is each rank's.
        attention_backend: who attends long dense runs of rows (`sparse_attn.kernels.BACKENDS`).
        cuda_graphs: on a GPU, replay decode steps from graphs captured at the start (`runner.cuda_graphs`).
    """

    dtype: str = "float32"
    device: str = "cpu"
    kv_memory: int = 2 << 30
    kv_dtype: str = "auto"
    kv_groups: str = "auto"
    page_size: int = 64
    max_model_len: int | None = None
    max_step_tokens: int = 2048
    max_running: int = 64
    max_waiting: int = 1024
    prefix_cache: bool = True
    host_memory: int = 0
    warm_folder: Path | None = None
    attention: str = "auto"
    drafter: str = "auto"
    draft_model: str | None = None
    tensor_parallel: int = 1
    cuda_graphs: bool = True
    attention_backend: str = "auto"
