"""Drafters that others trained: the *speculators* format and the raw ones, read and written."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RotaryEmbedding

from drafters.errors import DrafterError
from drafters.heads.folder import is_head, load_head, save_head

TEXT = [3, 7, 1, 4, 4, 9]


def below(head, target):
    with torch.no_grad():
        states = target.states(TEXT, head.config.reads)
        return head.begin().follow(states, torch.tensor([*TEXT[1:], 2]), 0)


def weights_of(head, tmp_path):
    save_head(head, tmp_path)
    return load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("name", ["eagle3", "dflash"])
def test_what_is_written_keeps_to_the_format(lab, tmp_path, name):
    """The keys and tensors that version 0.9 of the library reads."""
    weights, config = weights_of(lab.head(name, draft_vocab=9), tmp_path)
    assert config["speculators_model_type"] == config["speculators_config"]["algorithm"] == name
    assert config["speculators_config"]["default_proposal_method"] == "greedy"
    assert config["draft_vocab_size"] == 9
    assert config["transformer_layer_config"]["vocab_size"] == 12
    assert weights["d2t"].dtype == torch.int64
    assert weights["t2d"].dtype == torch.bool
    assert weights["t2d"].nonzero()[:, 0].tolist() == (torch.arange(9) + weights["d2t"]).tolist()
    attention = {f"layers.0.self_attn.{part}_proj.weight" for part in "qkvo"}
    assert attention | {"fc.weight", "norm.weight", "layers.0.mlp.gate_proj.weight"} <= set(weights)
    if name == "eagle3":
        assert config["eagle_aux_hidden_state_layer_ids"] == [1, 2]
        assert weights["layers.0.self_attn.q_proj.weight"].shape == (16, 32)
        assert {"layers.0.hidden_norm.weight", "fc_norm.0.weight"} <= set(weights)
    else:
        assert config["block_size"] == 8
        assert config["mask_token_id"] == 11
        assert {"hidden_norm.weight", "layers.1.self_attn.q_norm.weight"} <= set(weights)


@pytest.mark.parametrize(("name", "kind"), [("eagle3", "Eagle3DraftModel"), ("dflash", "DFlashDraftModel")])
def test_the_library_reads_what_is_written(lab, tmp_path, random_llama, name, kind):
    """Version 0.9 of it; what a head shares with its target the library takes from there."""
    speculators = pytest.importorskip("speculators")
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    random_llama(vocab_size=12, intermediate_size=24, **sizes).save_pretrained(tmp_path / "target")
    weights, config = weights_of(lab.head(name, draft_vocab=9), tmp_path / name)
    config["speculators_config"]["verifier"]["name_or_path"] = str(tmp_path / "target")
    (tmp_path / name / "config.json").write_text(json.dumps(config))
    model = speculators.SpeculatorModel.from_pretrained(str(tmp_path / name))
    assert type(model).__name__ == kind
    state = model.state_dict()
    for key, tensor in weights.items():
        assert torch.equal(state[key].to(tensor.dtype), tensor), key
    assert not state["lm_head.weight"].isnan().any()


def test_a_raw_eagle3_folder(lab, tmp_path):
    """EAGLE-3's own names: `midlayer`, the configuration of the layer beside the sizes, an output matrix of its own."""
    target, head = (
        lab.Target(12),
        copy.deepcopy(lab.head("eagle3", draft_vocab=9, reads=(2, 2, 1), depth=5, window=2048)),
    )
    head.config.options["fc_norm"] = False
    head.fc_norm = None
    own = head.own_state() | {"lm_head.weight": head.lm_head.weight.clone()}
    weights = {name.replace("layers.0.", "midlayer."): tensor.contiguous() for name, tensor in own.items()}
    save_file(weights, tmp_path / "model.safetensors")
    config = {key: value for key, value in head.config.layer.items() if key != "num_hidden_layers"}
    config |= {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 9, "vocab_size": 12}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert is_head(tmp_path)
    read = load_head(tmp_path, target)
    assert read.config.reads == (2, 2, 1)
    assert read.config.window == 2048
    torch.testing.assert_close(below(read, target), below(head, target))
    assert read.owns_output


def test_a_z_lab_dflash_folder(lab, tmp_path):
    """Their layers are numbered by what comes out of them."""
    target, head = lab.Target(12), lab.head("dflash", reads=(2, 4), depth=5, window=64, mask_token=7)
    save_file({name: tensor.contiguous() for name, tensor in head.own_state().items()}, tmp_path / "model.safetensors")
    config = head.config.layer | {
        "architectures": ["DFlashDraftModel"],
        "block_size": 6,
        "dflash_config": {"mask_token_id": 7, "target_layer_ids": [1, 3]},
        "sliding_window": 64,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = load_head(tmp_path, target)
    assert read.config.reads == (2, 4)
    assert (read.config.depth, read.config.window) == (5, 64)
    torch.testing.assert_close(below(read, target), below(head, target))


def mtp_folder(head, tmp_path, **changes):
    """As the *speculators* library writes it: the layer described by the whole target's configuration."""
    weights = {name.replace("layers.", "mtp_layers."): t.contiguous() for name, t in head.own_state().items()}
    save_file(weights, tmp_path / "model.safetensors")
    config = {
        "speculators_model_type": "mtp",
        "speculators_config": {"algorithm": "mtp", "proposal_methods": [{"speculative_tokens": 3}]},
        "transformer_layer_config": head.config.layer | {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4},
    }
    (tmp_path / "config.json").write_text(json.dumps(config | changes))


def test_an_mtp_folder(lab, tmp_path):
    """Its first guess is what transformers' own layer makes of the two parts, projected."""
    target, head = lab.Target(12), lab.head("mtp")
    mtp_folder(head, tmp_path)
    read = load_head(tmp_path, target)
    assert (read.config.reads, read.config.depth, read.config.window) == ((4,), 3, 2048)
    torch.testing.assert_close(below(read, target), below(head, target))
    layer, config = head.layers[0], head.layer_config
    config._attn_implementation = "eager"
    theirs = Qwen3DecoderLayer(config, 0)
    theirs.load_state_dict({name: t for name, t in layer.state_dict().items() if name in theirs.state_dict()})
    tokens, places = torch.tensor([*TEXT[1:], 2]), torch.arange(6)[None]
    with torch.no_grad():
        parts = layer.token_layernorm(target.embed(tokens)), layer.hidden_layernorm(target.states(TEXT, (4,))[:, 0])
        x, unseen = layer.input_proj(torch.cat(parts, -1))[None], torch.full((6, 6), -torch.inf).triu(1)
        angles = Qwen3RotaryEmbedding(config)(x, places)
        out = theirs(x, attention_mask=unseen[None, None], position_ids=places, position_embeddings=angles)
        expected = head.lm_head(layer.final_layernorm((out[0] if isinstance(out, tuple) else out)[0, -1:]))
    torch.testing.assert_close(below(read, target), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_nextn_predict_layers": 2}, "has 2 layers, Folio knows one"),
        ({"transformer_layer_config": {"model_type": "qwen3_next"}}, "layers of the kind 'qwen3_next'"),
        ({"transformer_layer_config": {"num_hidden_layers": 9, "vocab_size": 12, "hidden_size": 16}}, "9 layers"),
    ],
)
def test_an_mtp_folder_of_another_kind_is_told(lab, tmp_path, changes, said):
    mtp_folder(lab.head("mtp"), tmp_path, **changes)
    with pytest.raises(DrafterError, match=said):
        load_head(tmp_path, lab.Target(12))


def test_embeddings_of_its_own_are_used(lab, tmp_path):
    target, head = lab.Target(12), lab.head("eagle3")
    weights, _ = weights_of(head, tmp_path)
    own = torch.randn(12, 16)
    save_file(weights | {"embed_tokens.weight": own}, tmp_path / "model.safetensors")
    read = load_head(tmp_path, target)
    assert torch.equal(read.embed(torch.tensor([3])), own[3:4])
    assert not torch.allclose(below(read, target), below(head, target), atol=0.1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"speculators_model_type": "peagle"}, "of the kind 'peagle'"),
        ({"transformer_layer_config": {"model_type": "gpt_oss"}}, "layers of the kind 'gpt_oss'"),
        ({"eagle_aux_hidden_state_layer_ids": [1, 9]}, "reads layer 9"),
        ({"draft_vocab_size": 5}, "do not fit"),
    ],
)
def test_what_cannot_be_served_is_told(lab, tmp_path, changes, said):
    _, config = weights_of(lab.head("eagle3", draft_vocab=9), tmp_path)
    layer = config["transformer_layer_config"] | changes.pop("transformer_layer_config", {})
    (tmp_path / "config.json").write_text(json.dumps(config | {"transformer_layer_config": layer} | changes))
    with pytest.raises(DrafterError, match=said):
        load_head(tmp_path, lab.Target(12))


def test_a_model_is_no_drafter(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    assert not is_head(tmp_path)
    assert not is_head(tmp_path / "absent")
