"""A token's logits are the same bits alone, in a batch and in a tree, once linear layers are row-invariant."""

import pytest
import torch

from service.engine.runner.row_invariance import make_row_invariant
from sparse_attn import backend
from sparse_attn.batch import AttnBatch, GroupTables
from sparse_attn.kernels import select_kernels
from sparse_attn.kv.pool import KVPool, KVShape

LENGTH, VOCABULARY = 300, 97


@pytest.fixture(scope="module")
def model(random_llama):
    if not select_kernels(torch.device("cpu"), torch.float32).row_invariant:
        pytest.skip("no C++ compiler for the CPU kernels")
    model = random_llama(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=6,
        head_dim=16,
        max_position_embeddings=1024,
    )
    backend.attach(model)
    assert make_row_invariant(model) == 3 * 7 + 1
    return model


class Sequence:
    """One sequence over its own pages."""

    def __init__(self, model, pages=8):
        self.model = model
        self.pool = KVPool(KVShape(3, 2, 16), pages)
        self.pages = pages

    @torch.inference_mode()
    def run(self, start, tokens, tree=None):
        """Logits [n, V] of `tokens` behind `start` tokens in pages."""
        count = len(tokens)
        order = torch.arange(count)
        batch = AttnBatch(
            pool=self.pool,
            cu_seqlens=torch.tensor([0, count], dtype=torch.int32),
            context_lens=torch.tensor([start], dtype=torch.int32),
            tables=[GroupTables(torch.arange(self.pages, dtype=torch.int32).view(1, -1), start + order)],
            positions=start + (order if tree is None else tree.sum(1) - 1),
            tree_masks=None if tree is None else [tree],
        )
        out = self.model(input_ids=tokens[None], position_ids=batch.positions[None], use_cache=False, attn=batch)
        return out.logits[0]


def test_tree_nodes_equal_their_paths_decoded_token_by_token(model):
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(VOCABULARY, (LENGTH,), generator=generator)
    nodes = torch.randint(VOCABULARY, (33,), generator=generator)
    tree = torch.eye(33, dtype=torch.bool)
    for i in range(1, 33):
        tree[i] |= tree[int(torch.randint(0, i, (1,), generator=generator))]

    drafted = Sequence(model)
    drafted.run(0, prompt)
    together = drafted.run(LENGTH, nodes, tree)

    for node in (0, 5, 17, 32):
        plain = Sequence(model)
        plain.run(0, prompt)
        for depth, ancestor in enumerate(tree[node].nonzero().flatten().tolist()):
            alone = plain.run(LENGTH + depth, nodes[ancestor : ancestor + 1])
        assert torch.equal(alone[0], together[node])


def test_a_prompt_in_chunks_gives_the_same_logits_as_at_once(model):
    prompt = torch.randint(VOCABULARY, (200,), generator=torch.Generator().manual_seed(2))
    whole = Sequence(model).run(0, prompt)
    pieces = Sequence(model)
    for start in range(0, 200, 37):
        part = pieces.run(start, prompt[start : start + 37])
        assert torch.equal(part, whole[start : start + 37])


def test_numbers_stay_those_of_the_library(model):
    layer = torch.nn.Linear(33, 70)
    x = torch.randn(4, 5, 33)
    expected = layer(x)
    assert make_row_invariant(layer) == 1
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected)
    assert layer(x.requires_grad_()).requires_grad  # training takes the library's product


def test_other_dtypes_are_left_alone(model):
    assert make_row_invariant(torch.nn.Linear(8, 8, dtype=torch.float64)) == 0
