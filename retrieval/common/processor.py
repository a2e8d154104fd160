"""What this processor can do."""

from __future__ import annotations

from functools import cache


@cache
def has_bfloat16() -> bool:
    """Whether it multiplies bfloat16 itself (AMX or AVX-512)."""
    import torch  # only a search needs it; listing documents should not wait for its import

    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
