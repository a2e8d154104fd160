"""What int8 KV costs in accuracy: on K and V of the embedded reader, and in what it answers."""

from __future__ import annotations

import pytest
import torch

from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loading.checkpoint import EMBEDDED, LoadedModel, load_model
from service.engine.params import SamplingParams
from sparse_attn.kernels import dense
from sparse_attn.kernels.operands import Pages, Rows
from sparse_attn.kv.page_stats import PageStats
from sparse_attn.kv.quant import LEVELS, dequantize, quantize
from sparse_attn.plan.capture import Captured, capture

from .conftest import generate

PAGE = 64
LENGTH = 1024
# The parity tolerance of int8 KV: norm of the error ÷ norm of what should be. The reader's attention is sharp: its
# scores reach the hundreds, of which the steps of a key leave about ±1, so this is a hard case.
OUT_TOLERANCE = 0.25
LOGIT_TOLERANCE = 0.05

TEXT = (
    "The keeper of the northern light wrote the height of the tide into his book every evening, and beside it the "
    "names of the ships that had passed. On the third of March he wrote nothing. The Aurora had not come. "
)


@pytest.fixture(scope="module")
def reader() -> LoadedModel:
    return load_model(EMBEDDED)


@pytest.fixture(scope="module")
def token_ids(reader: LoadedModel) -> list[int]:
    text = " ".join(f"{number}. {TEXT}" for number in range(40))
    return list(reader.tokenizer(text).input_ids)[:LENGTH]


@pytest.fixture(scope="module")
def layers(reader: LoadedModel, token_ids: list[int]) -> list[Captured]:
    return capture(reader.model, token_ids)


def relative(error: torch.Tensor, expected: torch.Tensor) -> float:
    return float(error.norm() / expected.norm())


def paged(x: torch.Tensor) -> torch.Tensor:
    """[n, H, ...] → [pages, H, PAGE, ...]."""
    return x.unflatten(0, (-1, PAGE)).transpose(1, 2).contiguous()


def test_attention_over_int8_pages_is_within_its_tolerance(layers: list[Captured]) -> None:
    table = torch.arange(LENGTH // PAGE, dtype=torch.int32)[None]
    for layer in layers:
        rows = Rows.of_sequence(layer.q[-64:], layer.k[-64:], layer.v[-64:], layer.scale, LENGTH)
        exact = dense.paged_attention(Pages(paged(layer.k), paged(layer.v), table), rows)[0]
        (k, k_scale), (v, v_scale) = quantize(layer.k), quantize(layer.v)
        codes = Pages(paged(k), paged(v), table, paged(k_scale), paged(v_scale))
        found = dense.paged_attention(codes, rows)[0]
        assert 0 < relative(found - exact, exact) < OUT_TOLERANCE
        error = layer.v.abs().amax(-1) / LEVELS / 2 * 1.001
        assert ((dequantize(v, v_scale) - layer.v).abs() <= error[..., None]).all()


def test_bounds_of_int8_pages_rank_as_those_of_the_keys_do(layers: list[Captured]) -> None:
    """They hold for the keys before quantisation, and choose nearly the same pages."""
    for layer in layers:
        heads, dim = layer.k.shape[1:]
        pages = torch.arange(LENGTH // PAGE)
        codes, scales = quantize(layer.k)
        exact, found = (PageStats(1, len(pages), heads, PAGE, dim) for _ in range(2))
        exact.rebuild(0, paged(layer.k))
        found.rebuild(0, paged(codes), paged(scales))
        assert (found.kmin[0] <= exact.kmin[0]).all()
        assert (found.kmax[0] >= exact.kmax[0]).all()
        assert float((exact.kmin[0] - found.kmin[0]).max()) <= 1.01 * float(scales.amax())
        q = layer.q[-8:]
        true, loose = exact.bounds(0, q, pages), found.bounds(0, q, pages)
        assert (loose >= true - 1e-3).all()
        best, chosen = true.topk(4).values.sum(-1), true.gather(-1, loose.topk(4).indices).sum(-1)
        assert chosen.sum() >= 0.98 * best.sum()


def test_the_reader_says_the_same_over_int8_pages(reader: LoadedModel, token_ids: list[int]) -> None:
    """Its next tokens, and its logits within the tolerance."""
    logits, answers = [], []
    for kv_dtype in ("auto", "int8"):
        config = EngineConfig(kv_memory=64 << 20, kv_dtype=kv_dtype, max_model_len=2048, step_tokens=256)
        engine = Engine(reader, config)
        params = SamplingParams(max_tokens=16, drafter="none", attention="dense", ignore_eos=True, logprobs=20)
        result = generate(engine, [token_ids], params)[0]
        answers.append(result.token_ids)
        assert result.logprobs is not None
        logits.append(torch.tensor([logprob for _, logprob in result.logprobs[0].top]))
    assert answers[0] == answers[1]
    assert 0 < relative(logits[1] - logits[0], logits[0]) < LOGIT_TOLERANCE
