"""llama.cpp, built for this machine's instructions: token ids in and out, flash attention on, KV in float16.

In the precision "float32" KV is float32, as the weights of the file that goes with it. The option "prompt_lookup"
drafts by the package's own prompt lookup, ten tokens at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from protocol import serve

CHUNK = 2048
SCORED = 128  # positions whose logits are made at a time


class Model:
    """A loaded model and its one context."""

    def __init__(self, request: dict[str, Any]) -> None:
        import llama_cpp as api

        self.api = api
        api.llama_backend_init()
        self.model = api.llama_model_load_from_file(request["model"].encode(), api.llama_model_default_params())
        if not self.model:
            raise ValueError(f"llama.cpp does not load {request['model']}")
        params = api.llama_context_default_params()
        params.n_ctx = request["context"] * request["sequences"]
        params.n_batch, params.n_seq_max, params.kv_unified = CHUNK, request["sequences"], True
        params.n_threads = params.n_threads_batch = request["threads"]
        params.flash_attn_type = 1
        if request["precision"] == "float32":
            params.type_k = params.type_v = api.GGML_TYPE_F32
        self.context = api.llama_init_from_model(self.model, params)
        if not self.context:
            raise ValueError("llama.cpp makes no context of this size")
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.batch = api.llama_batch_init(CHUNK, 0, 1)
        self.lookup: Any = None
        if request["option"] == "prompt_lookup":
            from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

            self.lookup = LlamaPromptLookupDecoding()

    def draft(self, text: Sequence[int]) -> list[int]:
        """What may follow a text; nothing without the option."""
        import numpy

        return [] if self.lookup is None else self.lookup(numpy.array(text, numpy.intc)).tolist()

    def forget(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def keep(self, count: int) -> None:
        """Forget all but the first tokens of the first sequence."""
        self.api.llama_memory_seq_rm(self.api.llama_get_memory(self.context), 0, count, -1)

    def run(self, tokens: Sequence[tuple[int, int, int, bool]]) -> None:
        """One forward of at most CHUNK tokens, each with its position, its sequence, and whether it has logits."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if failed := self.api.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode gave {failed}")

    def read(self, ids: list[int], sequence: int) -> int:
        """Read a prompt; the token that follows."""
        rows = [(token, i, sequence, i + 1 == len(ids)) for i, token in enumerate(ids)]
        for first in range(0, len(rows), CHUNK):
            self.run(rows[first : first + CHUNK])
        return self.likeliest(-1)

    def logits(self, row: int) -> Any:
        import numpy

        return numpy.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, row), shape=(self.vocabulary,))

    def likeliest(self, row: int) -> int:
        return int(self.logits(row).argmax())


def stream(engine: Model, ids: list[int], new_tokens: int) -> Iterator[int]:
    engine.forget()
    text = [*ids, engine.read(ids, 0)]
    yield text[-1]
    while (left := len(ids) + new_tokens - len(text)) > 0:
        drafts = engine.draft(text)[: left - 1]
        engine.run([(token, len(text) - 1 + i, 0, True) for i, token in enumerate([text[-1], *drafts])])
        for row, guess in enumerate([*drafts, None]):
            text.append(engine.likeliest(row))
            yield text[-1]
            if text[-1] != guess:
                break
        if drafts:
            engine.keep(len(text) - 1)


def batch(engine: Model, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    engine.forget()
    generated = [[engine.read(ids, number)] for number, ids in enumerate(prompts)]
    for i in range(new_tokens - 1):
        rows = [
            (own[-1], len(ids) + i, number, True)
            for number, (ids, own) in enumerate(zip(prompts, generated, strict=True))
        ]
        engine.run(rows)
        for row, own in enumerate(generated):
            own.append(engine.likeliest(row))
    return generated


def score(engine: Model, ids: list[int]) -> float:
    import numpy

    engine.forget()
    losses: list[float] = []
    for first in range(0, len(ids) - 1, SCORED):
        rows = [(token, first + i, 0, True) for i, token in enumerate(ids[first : first + SCORED])]
        engine.run(rows)
        for row, following in enumerate(ids[first + 1 : first + 1 + len(rows)]):
            logits = engine.logits(row).astype(numpy.float64)
            losses.append(float(numpy.logaddexp.reduce(logits) - logits[following]))
    return sum(losses) / len(losses)


def about(engine: Model) -> str:
    return str(engine.api.llama_print_system_info().decode().strip())


if __name__ == "__main__":
    serve(Model, stream, batch, score, about, ("llama_cpp", "numpy"))
