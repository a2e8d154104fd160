"""llama.cpp through xllamacpp's wheel: its server in this process, token ids in and out, flash attention on."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

from protocol import serve


def load(request: dict[str, Any]) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = f"{request['model']}/model.gguf"
    params.n_ctx = request["context"]
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = False
    params.cache_prompt = False
    params.cpuparams.n_threads = request["threads"]
    params.cpuparams_batch.n_threads = request["threads"]
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    return xllamacpp.Server(params)


def stream(engine: Any, ids: list[int], new_tokens: int) -> Iterator[int]:
    body = {
        "prompt": ids,
        "n_predict": new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_tokens": True,
        "stream": True,
        "cache_prompt": False,
    }
    request = urllib.request.Request(
        f"{engine.listening_address}/completion",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=3600) as response:
        for line in response:
            if line.startswith(b"data:"):
                yield from json.loads(line[5:]).get("tokens", ())


if __name__ == "__main__":
    serve(load, stream)
