"""The benchmarks of linear layers and of precisions: what they compare is there, on next to no work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eval.bench.weights import linear, precision
from eval.errors import EvalError
from sparse_attn.kernels import select_kernels

pytestmark = pytest.mark.skipif(
    not select_kernels(torch.device("cpu"), torch.float32).row_invariant, reason="no C++ compiler for the CPU kernels"
)


def test_each_kind_is_timed_beside_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(linear.SHAPES, "tiny", ((64, 256), (64, 96)))
    monkeypatch.setattr(linear, "_FROM_MEMORY", 1 << 16)
    found = linear.run(linear.Options(rounds=1, rows=(1, 80), kinds=("BF16", "Q4_K"), shapes="tiny"))
    assert [(row["rows"], row["inner"]) for row in found["linear"]] == [(1, 256), (1, 96), (80, 256), (80, 96)]
    assert all(row[name] > 0 for row in found["linear"] for name in ("torch_float32", "torch_bfloat16", "BF16"))
    assert ["Q4_K" in row for row in found["linear"]] == [True, False, True, False]  # whose blocks are of 256
    assert ["BF16_gb_per_s" in row for row in found["linear"]] == [True, True, False, False]


@pytest.mark.slow
def test_precisions_are_compared_on_the_same_windows(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The harbour of Elmouth was built in 1832 by its fishermen. " * 20)
    options = {"text": text, "model": "embedded", "windows": 2, "window": 32, "contexts": (24,), "new_tokens": 3}
    names = ("float32/plain", "float32/int8", "float32/int8/int8")
    found = precision.run(precision.Options(precisions=names, **options))
    plain, narrow, narrowest = found["precisions"]
    assert narrowest["perplexity_change_percent"] not in (0, narrow["perplexity_change_percent"])
    assert plain["perplexity_change_percent"] == 0
    assert narrow["perplexity_change_percent"] != 0
    assert narrow["weights_mb"] < 0.5 * plain["weights_mb"]
    assert narrow["decode_24_ms"] > 0
    with pytest.raises(EvalError, match="has 362 tokens, not 32000"):
        precision.run(precision.Options(**{**options, "windows": 1000}))
