"""OpenVINO GenAI's continuous batching pipeline; option "xattention" makes its prefill sparse.

In the precision "auto" it chooses numbers and KV itself; else both are float32.
"""

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
    properties = {"INFERENCE_NUM_THREADS": request["threads"]}
    if request["precision"] != "auto":
        properties |= {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    return Running(
        genai.ContinuousBatchingPipeline(request["model"], scheduler, "CPU", properties), request, properties
    )


class Running:
    """The pipeline, and what it was made of."""

    def __init__(self, pipeline: Any, request: dict[str, Any], properties: dict[str, Any]) -> None:
        self.pipeline, self.model, self.properties = pipeline, request["model"], properties
        self.numbers = count()


def stream(engine: Any, ids: list[int], new_tokens: int) -> Iterator[int]:
    handle = _add(engine, ids, new_tokens)
    while engine.pipeline.has_non_finished_requests():
        engine.pipeline.step()
        yield from _read(handle)


def batch(engine: Any, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    handles = [_add(engine, ids, new_tokens) for ids in prompts]
    generated: list[list[int]] = [[] for _ in prompts]
    while engine.pipeline.has_non_finished_requests():
        engine.pipeline.step()
        for ids, handle in zip(generated, handles, strict=True):
            ids += _read(handle)
    return generated


def _add(engine: Any, ids: list[int], new_tokens: int) -> Any:
    import numpy
    import openvino
    import openvino_genai as genai

    config = genai.GenerationConfig()
    config.max_new_tokens = new_tokens
    config.set_eos_token_id(0)  # the model has none, which GenAI cannot say; it is ignored
    config.ignore_eos = True
    config.do_sample = False
    return engine.pipeline.add_request(
        next(engine.numbers), openvino.Tensor(numpy.array([ids], dtype=numpy.int64)), config
    )


def _read(handle: Any) -> list[int]:
    ids: list[int] = []
    while handle.can_read():
        for output in handle.read().values():
            ids += output.generated_ids
    return ids


def score(engine: Any, ids: list[int]) -> float:
    """By the same graph compiled for its logits, which the pipeline keeps to itself."""
    import numpy
    import openvino

    model = openvino.Core().compile_model(f"{engine.model}/openvino_model.xml", "CPU", engine.properties)
    tokens = numpy.array([ids], dtype=numpy.int64)
    inputs = {
        "input_ids": tokens,
        "attention_mask": numpy.ones_like(tokens),
        "position_ids": numpy.arange(len(ids), dtype=numpy.int64)[None],
        "beam_idx": numpy.zeros(1, dtype=numpy.int32),
    }
    logits = model.create_infer_request().infer(inputs)["logits"][0, :-1].astype(numpy.float64)
    return float((numpy.logaddexp.reduce(logits, 1) - logits[numpy.arange(len(logits)), tokens[0, 1:]]).mean())


def about(engine: Any) -> str:
    import openvino_genai as genai

    return f"OpenVINO GenAI {genai.get_version()}"


if __name__ == "__main__":
    serve(load, stream, batch, score, about, ("openvino", "openvino_genai"))
