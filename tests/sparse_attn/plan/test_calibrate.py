"""Calibration finds what was planted: patterns at equal cost, streaming and retrieval heads, gates."""

import pytest
import torch

from sparse_attn.plan.calibrate import area_scores, retrieval_text, search_patterns, streaming_error, train_gates
from sparse_attn.plan.capture import Captured, capture
from sparse_attn.plan.patterns import AShape, BlockTopK, VerticalSlash


@pytest.fixture(scope="module")
def model(random_llama):
    return random_llama()


def test_capture_keeps_what_the_layers_saw_and_puts_attention_back(model):
    ids = torch.randint(0, 64, (50,))
    before = model.config._attn_implementation
    first, second = capture(model, ids)
    assert model.config._attn_implementation == before
    assert (first.layer, second.layer) == (0, 1)
    assert first.q.shape == (50, 4, 8)
    assert first.k.shape == first.v.shape == (50, 2, 8)
    hidden = model.model.layers[0].input_layernorm(model.model.embed_tokens(ids))
    attention = model.model.layers[0].self_attn
    torch.testing.assert_close(first.v, attention.v_proj(hidden).view(50, 2, 8))
    cos, sin = model.model.rotary_emb(hidden[None], torch.arange(50)[None])
    k = attention.k_proj(hidden).view(50, 2, 8)
    rotated = k * cos[0, :, None] + torch.cat([-k[..., 4:], k[..., :4]], -1) * sin[0, :, None]
    torch.testing.assert_close(first.k, rotated)
    assert [c.layer for c in capture(model, ids, layers=[1])] == [1]
    # What attention computed meanwhile was dense attention: the second layer's input agrees with the model's own.
    truth = model.model(input_ids=ids[None], output_hidden_states=True).hidden_states[1][0]
    normed = model.model.layers[1].input_layernorm(truth)
    torch.testing.assert_close(second.v, model.model.layers[1].self_attn.v_proj(normed).view(50, 2, 8))


def planted(kinds, n=1024, dim=32, seed=0):
    """One KV head a query head; each head attends as its kind says."""
    g = torch.Generator().manual_seed(seed)

    def codes(count):
        return torch.nn.functional.normalize(torch.randn(count, dim, generator=g), dim=-1)

    q, k = torch.randn(n, len(kinds), dim, generator=g) * 0.2, torch.randn(n, len(kinds), dim, generator=g) * 0.2
    for h, kind in enumerate(kinds):
        if kind == "local":
            slow = codes(n // 64 + 1).repeat_interleave(64, 0)[:n]
            q[:, h] += 24 * slow
            k[:, h] += 3 * slow
        elif kind == "column":
            direction = codes(1)[0]
            q[:, h] += 16 * direction
            k[torch.randperm(n // 2, generator=g)[:3] + n // 8, h] += 3 * direction
        elif kind == "slash":
            code = codes(n)
            k[:, h] += 3 * code
            q[:, h] += 16 * code.roll(300, 0)
        elif kind == "blocks":  # topics come back: a block of queries wants two blocks of keys, no column, no diagonal
            topics = codes(8)
            order = torch.randint(0, 8, (n // 64,), generator=g).repeat_interleave(64)
            q[:, h] += 16 * topics[order]
            k[:, h] += 3 * topics[order]
    return Captured(0, q, k, torch.randn(n, len(kinds), dim, generator=g), dim**-0.5)


def test_the_search_finds_the_planted_pattern_at_equal_cost():
    kinds = ["local", "column", "slash", "blocks"]
    choices = search_patterns(planted(kinds), budget=320)
    assert not any(isinstance(c.pattern, AShape) for c in choices[1:])
    assert isinstance(choices[3].pattern, BlockTopK)
    assert choices[2].errors["VerticalSlash"] < choices[2].errors["AShape"]
    assert choices[0].errors["AShape"] < 0.2
    assert choices[1].errors["AShape"] > 0.8
    for choice in choices:
        assert choice.error < 0.7
        assert choice.error == min(choice.errors.values())
        assert 0.7 < choice.density / (5 / 12.5) < 1.05  # 320 keys are 5 blocks, of 9 to 16 that are causal


def test_a_streaming_head_is_told_from_a_retrieval_head():
    local, column = streaming_error(planted(["local", "column"]), sink=32, local=128)
    assert local < 0.2
    assert column > 0.5


def test_search_accepts_grouped_heads_and_odd_lengths():
    captured = planted(["local", "column"], n=500)
    captured = Captured(0, captured.q.repeat_interleave(2, 1), captured.k, captured.v, captured.scale)
    choices = search_patterns(captured, budget=192, block=32)
    assert len(choices) == 4
    assert choices[0].pattern == choices[1].pattern
    assert isinstance(choices[0].pattern, AShape | VerticalSlash | BlockTopK)
    assert len(streaming_error(captured, 16, 64)) == 2


def test_area_tells_near_from_far_sighted_heads():
    n, dim = 256, 16
    angles = torch.arange(n)[:, None] * 100.0 ** (-torch.arange(0, dim, 2) / dim)
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

    def rotate(x):
        return x * cos[:, None] + torch.cat([-x[..., dim // 2 :], x[..., : dim // 2]], -1) * sin[:, None]

    even, near = torch.zeros(dim), torch.ones(dim) * 2  # equal q and k are most alike at distance 0
    q = rotate(torch.stack([even, near]).expand(n, -1, -1))
    captured = Captured(0, q, q, torch.zeros(n, 2, dim), 1.0)
    far_sighted, near_sighted = area_scores(captured, cos, sin)
    assert far_sighted == pytest.approx(0.5, abs=0.01)
    assert near_sighted < 0.1


def test_made_text_ends_with_a_record_from_its_first_half():
    text = "".join(map(chr, retrieval_text(lambda s: [ord(c) for c in s], 2000, seed=1, filler="x" * 500)))
    assert 1900 < len(text) <= 2000
    question, answer = text[text.rindex("What is") :].split("? ")
    assert text.index(answer) < len(text) * 0.6
    assert question.split()[-1] in answer


def test_gates_learn_which_heads_a_model_needs_far(model):
    """Layer 1's KV head 0 is made to look far back, the others contribute nothing there: only its gate stays up."""
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(0)
        far = model.model.layers[1].self_attn
        far.o_proj.weight[:, :16] = torch.randn(32, 16) * 3  # query heads 0 and 1 read KV head 0
    weights = [p.requires_grad for p in model.parameters()]
    texts = (torch.randint(0, 64, (96,)).tolist() for _ in range(80))
    alpha = train_gates(model, texts, sink=4, local=8, steps=60, lr=0.05, sparsity=0.3)
    assert alpha[1][0] > 0.5
    assert max(alpha[0][0], alpha[0][1], alpha[1][1]) < 0.1
    assert [p.requires_grad for p in model.parameters()] == weights
    assert model.config._attn_implementation != "folio_gate"
