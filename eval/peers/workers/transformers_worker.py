"""transformers `generate` with SDPA; option "prompt_lookup" drafts ten tokens from the prompt."""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue
from threading import Thread
from typing import Any

from protocol import serve


def load(request: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(request["threads"])
    dtype = getattr(torch, request["precision"])
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=dtype, trust_remote_code=False).eval()
    model.generation_config.eos_token_id = None
    extra = {"prompt_lookup_num_tokens": 10} if request["option"] == "prompt_lookup" else {}
    return model, extra


class Tokens:
    """A transformers streamer that hands tokens on; the first call brings the prompt."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[list[int] | None] = SimpleQueue()
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        if self._prompt_seen:
            self.queue.put(value.reshape(-1).tolist())
        self._prompt_seen = True

    def end(self) -> None:
        self.queue.put(None)


def stream(engine: Any, ids: list[int], new_tokens: int) -> Iterator[int]:
    import torch

    model, extra = engine
    prompt = torch.tensor([ids])
    tokens = Tokens()
    failed: list[BaseException] = []

    def generate() -> None:
        try:
            model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens if not extra else None,
                streamer=tokens,
                **extra,
            )
        except BaseException as error:
            failed.append(error)
            tokens.end()

    worker = Thread(target=generate)
    worker.start()
    while (some := tokens.queue.get()) is not None:
        yield from some
    worker.join()
    if failed:
        raise failed[0]


def batch(engine: Any, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """Prompts of one length, which need no padding."""
    import torch

    model, extra = engine
    together = torch.tensor(prompts)
    ids = model.generate(
        together,
        attention_mask=torch.ones_like(together),
        do_sample=False,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        **extra,
    )
    return ids[:, together.shape[1] :].tolist()  # type: ignore[no-any-return]


def score(engine: Any, ids: list[int]) -> float:
    import torch

    model, _ = engine
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    return float(torch.nn.functional.cross_entropy(logits.float(), torch.tensor(ids[1:])))


if __name__ == "__main__":
    serve(load, stream, batch, score, imports=("torch", "transformers"))
