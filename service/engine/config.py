"""The options of an engine, each described once: here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError, model_validator

from service.engine.options import blends
from service.errors import InvalidRequest

if TYPE_CHECKING:
    Bytes = int
else:
    Bytes = ByteSize  # an int that may be written 2GiB


def prefill_share(step_tokens: int) -> int:
    """Rows of a step that decoding requests and their drafts leave to prompts while there are any to read."""
    return max(1, step_tokens // 4)


class EngineConfig(BaseModel):
    """How an engine is built and what it takes.

    The service sets each option by a variable, a key of its file or a flag of the option's name (`service.settings`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = Field(
        default="auto",
        description="Precision; auto: bfloat16 on a GPU, and on a CPU that multiplies it unless the model is float32.",
    )
    weights: Literal["auto", "plain", "stored", "int8"] = Field(
        default="auto",
        description="On a CPU: as stored (a GGUF file's blocks, 16 bits), int8, or plain tensors of DTYPE (--weights).",
    )
    activations: Literal["auto", "int8"] = Field(
        default="auto",
        description="On a CPU: int8 rounds what enters a linear layer of integer weights to int8 (--activations).",
    )
    device: str = Field(default="auto", description="cpu, cuda, cuda:N, or auto (a GPU where there is one).")
    tensor_parallel: int = Field(
        default=1, ge=1, le=64, description="Processes that share the model, a GPU each (--tp); for serve and generate."
    )
    attention_backend: Literal["auto", "own", "flash-attn-3", "flash-attn", "sdpa", "flex"] = Field(
        default="auto", description="Kernels for long dense runs of rows (--backend); own: Folio's alone."
    )
    cuda_graphs: bool = Field(
        default=True, description="On a GPU, replay decode steps from graphs that are captured at the start."
    )
    batch_invariant: bool = Field(
        default=False,
        description="No bit of a row depends on drafts, chunks and company: on a CPU in float32, or a GPU; slower.",
    )
    threads: int = Field(default=0, ge=0, le=1024, description="CPU threads of the model; 0 leaves it to torch.")
    max_model_len: int | None = Field(
        default=None, ge=16, description="Longest prompt and answer, in tokens; default: the model's."
    )
    page_size: int = Field(default=64, ge=1, le=1024, description="Tokens of a page of KV.")
    kv_memory: Bytes | None = Field(
        default=None,
        ge=1,
        description="Memory for pages of KV, as 2GiB or in bytes; default: 2 GiB, on a GPU 85% of what is free.",
    )
    kv_dtype: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        default="auto",
        description="Of the pages of KV: auto for the model's, float32 or bfloat16 on a CPU, or int8 (--kv-dtype).",
    )
    kv_groups: str = Field(
        default="auto",
        description="Policy whose streaming heads get pages that they free; auto: that of ATTENTION; or none.",
    )
    prefix_cache: bool = Field(
        default=True, description="Keep the KV of finished requests for prompts that begin alike."
    )
    prefix_scope: Literal["owner", "everyone"] = Field(
        default="owner",
        description="Who finds the KV of a prefix: its owner, or everyone, who can then tell what others have asked.",
    )
    learned_memory: Bytes = Field(
        default=256 << 20,
        description="Memory for what drafters learn of each owner's requests; oldest owners go first.",
    )
    host_memory: Bytes = Field(default=0, description="Host memory for KV that the prefix cache evicts; 0 for none.")
    passage_memory: Bytes = Field(
        default=512 << 20, description="Host memory for the KV of passages, for the policy blend; 0 keeps none."
    )
    passage_dtype: Literal["auto", "int8"] = Field(
        default="auto", description="Of the KV of kept passages: auto for that of the pages, or int8."
    )
    warm_folder: Path | None = Field(
        default=None, description="Folder of the KV of warmed documents; default: kv in the data folder."
    )
    max_running: int = Field(default=16, ge=1, le=1024, description="Sequences decoded at once.")
    step_tokens: int = Field(
        default=2048, ge=16, description="Token budget of one engine step (prefill chunk and decode rows)."
    )
    drafter: str = Field(default="auto", description="Drafter of requests that name none, NAME[:key=value,…].")
    draft_model: str | None = Field(
        default=None,
        description="Checkpoint for drafters that want a model of their own, or a trained drafter's folder.",
    )
    attention: str = Field(default="auto", description="Sparse attention policy of requests that name none.")
    canary: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the answers under a lossy attention policy that are held to the exact model when idle.",
    )
    canary_bound: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="A policy is withdrawn when the exact model would have chosen fewer of its last answers' tokens.",
    )
    queue_limit: int = Field(default=64, ge=1, description="Requests that may wait for the engine; more get 429.")
    first_token_timeout_s: float = Field(default=300, gt=0, description="Longest wait for the first token.")
    total_timeout_s: float = Field(default=1800, gt=0, description="Longest time for a whole answer.")

    @classmethod
    def of(cls, **options: Any) -> EngineConfig:
        """These options, the others as they are. Raises InvalidRequest for one that is unknown or wrong."""
        try:
            return cls(**options)
        except ValidationError as error:
            name, reason = first_problem(error)
            subject = f"Option {name!r} is not valid" if name else "The options contradict one another"
            raise InvalidRequest(f"{subject}: {reason}.", param=name or None) from error

    @model_validator(mode="after")
    def _decoding_leaves_room_for_prompts(self) -> EngineConfig:
        most = self.step_tokens - prefill_share(self.step_tokens)
        if self.max_running > most:
            raise ValueError(
                f"max_running of {self.max_running} leaves prompts too few of the {self.step_tokens} rows of a step; "
                f"set FOLIO_MAX_RUNNING to {most} or less, or raise FOLIO_STEP_TOKENS"
            )
        return self

    @model_validator(mode="after")
    def _exact_by_default(self) -> EngineConfig:
        if blends(self.attention):
            raise ValueError("blend gives other answers than the model's own, and is for requests that name it")
        return self

    @model_validator(mode="after")
    def _own_kernels_are_invariant(self) -> EngineConfig:
        if self.batch_invariant and self.attention_backend not in ("auto", "own"):
            raise ValueError(
                f"batch_invariant needs Folio's own kernels, and attention_backend asks for {self.attention_backend}; "
                "set FOLIO_ATTENTION_BACKEND to auto"
            )
        return self

    @model_validator(mode="after")
    def _one_process_has_a_host(self) -> EngineConfig:
        if self.tensor_parallel > 1 and self.host_memory:
            raise ValueError(
                "host_memory keeps the pages of one process, and with tensor_parallel (--tp) they lie in several; "
                "set FOLIO_HOST_MEMORY to 0"
            )
        if self.tensor_parallel > 1 and self.canary:
            raise ValueError(
                "canary reads the hidden states of one process, and with tensor_parallel (--tp) they lie in several; "
                "set FOLIO_CANARY to 0"
            )
        return self

    @property
    def backend(self) -> str:
        """Of attention, by the name that `sparse_attn.kernels.select_kernels` takes."""
        from sparse_attn.kernels import INVARIANT

        return INVARIANT if self.batch_invariant else self.attention_backend

    def resolved(self, device: str | None = None, dtype: str | None = None) -> EngineConfig:
        """With what ``auto`` stands for: the given device and precision, of a loaded model, or this machine's.

        On a CPU the precision depends on the model, so that without one it stays ``auto``.
        """
        import torch

        device = self.device if self.device != "auto" else device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = self.dtype if self.dtype != "auto" else dtype or ("auto" if device == "cpu" else "bfloat16")
        return self.model_copy(update={"device": device, "dtype": dtype})


def first_problem(error: ValidationError) -> tuple[str, str]:
    """The option at fault, empty where several contradict one another, and what is wrong with it."""
    problem = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return name, "there is no such option"
    reason = problem["msg"].removeprefix("Value error, ").rstrip(".")
    return name, reason[0].lower() + reason[1:]
