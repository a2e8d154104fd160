"""OpenVINO GenAI's continuous batching pipeline in fp32; option "xattention" makes its prefill sparse."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from protocol import serve

CHUNK = 2048


def load(request: dict[str, Any]) -> Any:
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 4
    scheduler.max_num_batched_tokens = CHUNK if request["option"] else request["context"]
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = False
    if request["option"] == "xattention":
        scheduler.use_sparse_attention = True
        scheduler.sparse_attention_config = genai.SparseAttentionConfig(
            mode=genai.SparseAttentionMode.XATTENTION, num_last_dense_tokens_in_prefill=128, xattention_threshold=0.9
        )
    properties = {
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "INFERENCE_NUM_THREADS": request["threads"],
    }
    return genai.ContinuousBatchingPipeline(request["model"], scheduler, "CPU", properties), count()


def stream(engine: Any, ids: list[int], new_tokens: int) -> Iterator[int]:
    pipeline, _ = engine
    handle = _add(engine, ids, new_tokens)
    while pipeline.has_non_finished_requests():
        pipeline.step()
        yield from _read(handle)


def batch(engine: Any, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    pipeline, _ = engine
    handles = [_add(engine, ids, new_tokens) for ids in prompts]
    generated: list[list[int]] = [[] for _ in prompts]
    while pipeline.has_non_finished_requests():
        pipeline.step()
        for ids, handle in zip(generated, handles, strict=True):
            ids += _read(handle)
    return generated


def _add(engine: Any, ids: list[int], new_tokens: int) -> Any:
    import numpy
    import openvino
    import openvino_genai as genai

    pipeline, numbers = engine
    config = genai.GenerationConfig()
    config.max_new_tokens = new_tokens
    config.set_eos_token_id(0)  # the model has none, which GenAI cannot say; it is ignored
    config.ignore_eos = True
    config.do_sample = False
    return pipeline.add_request(next(numbers), openvino.Tensor(numpy.array([ids], dtype=numpy.int64)), config)


def _read(handle: Any) -> list[int]:
    ids: list[int] = []
    while handle.can_read():
        for output in handle.read().values():
            ids += output.generated_ids
    return ids


if __name__ == "__main__":
    serve(load, stream, batch)
