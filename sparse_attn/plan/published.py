"""Head files that the papers' repositories publish: which checkpoint wants which.

Nothing is downloaded. Who gives a file of these names for another checkpoint is told, for two models may have equal
shapes; and who gives none is told which one there is for his.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sparse_attn.errors import PolicyError

MINFERENCE = "microsoft/MInference, minference/configs"
DUO = "mit-han-lab/duo-attention, attn_patterns"

_TUNED = "kv_out_v32_fit_o_best_pattern"
MINFERENCE_FILES: dict[str, tuple[str, ...]] = {
    f"Llama_3_8B_Instruct_262k_{_TUNED}.json": (
        "Llama-3-8B-Instruct-262k",
        "Llama-3-8B-Instruct-Gradient-1048k",
        "Llama-3-8B-Instruct-Gradient-4194k",
    ),
    f"Llama_3_70B_Instruct_262k_{_TUNED}.json": (
        "Llama-3-70B-Instruct-Gradient-262k",
        "Llama-3-70B-Instruct-Gradient-1048k",
    ),
    f"Llama_3.1_8B_Instruct_128k_{_TUNED}_v2.json": ("Meta-Llama-3.1-8B-Instruct", "Llama-3.1-8B-Instruct"),
    f"Llama_3.1_70B_Instruct_128k_{_TUNED}_v2.json": ("Meta-Llama-3.1-70B-Instruct", "Llama-3.1-70B-Instruct"),
    f"Qwen2_7B_Instruct_128k_instruct_{_TUNED}.json": ("Qwen2-7B-Instruct",),
    "Qwen2.5_7B_Instruct_1M.json": ("Qwen2.5-7B-Instruct-1M",),
    "Qwen2.5_14B_Instruct_1M.json": ("Qwen2.5-14B-Instruct-1M",),
    f"Qwen2.5_3B_{_TUNED}.json": ("Qwen2.5-3B", "Qwen2.5-3B-Instruct"),
    f"Qwen2.5_7B_Instruct_128k_instruct_{_TUNED}.json": ("Qwen2.5-7B-Instruct",),
    f"Qwen2.5_32B_Instruct_128k_{_TUNED}.json": ("Qwen2.5-32B-Instruct",),
    f"Qwen2.5_72B_Instruct_128k_{_TUNED}.json": ("Qwen2.5-72B-Instruct",),
    f"Qwen3_0.6B_128k_instruct_{_TUNED}.json": ("Qwen3-0.6B",),
    f"Qwen3_8B_128k_{_TUNED}.json": ("Qwen3-8B",),
    f"Qwen3_32B_128k_{_TUNED}.json": ("Qwen3-32B",),
    f"Yi_9B_200k_{_TUNED}.json": ("Yi-9B-200K",),
    f"Phi_3_mini_128k_instruct_{_TUNED}.json": ("Phi-3-mini-128k-instruct",),
    f"GLM_4_9B_1M_instruct_{_TUNED}.json": ("glm-4-9b-chat-1m",),
}
"""file → the checkpoints that it was searched for, without their owners"""

_DUO_32K = "lr=0.02-reg=0.05-ctx=1000_32000-multi_passkey10"
DUO_FOLDERS: dict[str, tuple[str, ...]] = {
    f"{name}/{_DUO_32K}": (name,)
    for name in (
        "Llama-2-7B-32K-Instruct",
        "Llama-3-8B-Instruct-Gradient-1048k",
        "Llama-3-8B-Instruct-Gradient-4194k",
        "Mistral-7B-Instruct-v0.2",
        "Mistral-7B-Instruct-v0.3",
    )
} | {
    "Meta-Llama-3.1-8B-Instruct/lr=0.02-reg=0.05-ctx=1000_128000-multi_passkey10": (
        "Meta-Llama-3.1-8B-Instruct",
        "Llama-3.1-8B-Instruct",
    )
}
"""folder, with full_attention_heads.tsv and config.json, → checkpoints"""


def published_for(checkpoint: str) -> list[str]:
    """Where there is a file for a checkpoint (a hub id, or a folder of its name), in words."""
    found = [f"{file} ({MINFERENCE})" for file in _wanted(MINFERENCE_FILES, checkpoint)]
    return found + [f"{folder} ({DUO})" for folder in _wanted(DUO_FOLDERS, checkpoint)]


def refuse_foreign(path: str, checkpoint: str) -> None:
    """Refuse a published file by its name, where it is another checkpoint's and both are known.

    Raises:
        PolicyError: names both.
    """
    wanted = _wanted(MINFERENCE_FILES, checkpoint)
    name = Path(path).name
    if wanted and name in MINFERENCE_FILES and name not in wanted:
        raise PolicyError(
            f"minference: {name} was searched for {MINFERENCE_FILES[name][0]}, not for {_name(checkpoint)}: "
            f"give {wanted[0]} ({MINFERENCE})"
        )


def _wanted(files: Mapping[str, tuple[str, ...]], checkpoint: str) -> list[str]:
    name = _name(checkpoint).lower()
    return [file for file, owners in files.items() if name in map(str.lower, owners)]


def _name(checkpoint: str) -> str:
    return checkpoint.rstrip("/").rpartition("/")[2]
