"""CTranslate2's Generator in fp32; its vocabulary is the ids written as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from protocol import serve


def load(request: dict[str, Any]) -> Any:
    import ctranslate2

    return ctranslate2.Generator(
        request["model"], device="cpu", compute_type="float32", inter_threads=1, intra_threads=request["threads"]
    )


def stream(engine: Any, ids: list[int], new_tokens: int) -> Iterator[int]:
    results = engine.generate_tokens(
        [str(token) for token in ids], max_length=new_tokens, min_length=new_tokens, sampling_topk=1, end_token=[]
    )
    for result in results:
        yield result.token_id


if __name__ == "__main__":
    serve(load, stream, imports=("ctranslate2",))
