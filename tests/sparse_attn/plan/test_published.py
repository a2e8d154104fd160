"""Published head files: known by name, told where there is one, refused where it is another model's."""

import json
from dataclasses import replace

import pytest

from sparse_attn.errors import PolicyError
from sparse_attn.plan.policies import LServe, MInference
from sparse_attn.plan.policy import ModelShape
from sparse_attn.plan.published import MINFERENCE_FILES, published_for

LLAMA = ModelShape(32, 32, 8, 128, checkpoint="meta-llama/Llama-3.1-8B-Instruct")


def test_a_checkpoint_without_a_file_is_told_which_is_published_for_it():
    for policy in (MInference(), LServe()):
        with pytest.raises(PolicyError, match=r"Llama_3.1_8B_Instruct_128k_kv_out_v32_fit_o_best_pattern_v2.json"):
            policy.check(LLAMA)
    with pytest.raises(PolicyError, match=r"ships for this model; make one"):
        MInference().check(replace(LLAMA, checkpoint="models/mine"))
    assert len(published_for("/models/meta-llama-3.1-8b-instruct/")) == 2


def test_a_published_file_of_another_checkpoint_of_the_same_shape_is_refused_by_name(tmp_path):
    """In the format of the published files: layers of {head: [kind, vertical, slash, score]}."""
    ours, theirs = (next(file for file, names in MINFERENCE_FILES.items() if one in names)
                    for one in ("Llama-3.1-8B-Instruct", "Llama-3-8B-Instruct-262k"))  # fmt: skip
    table = [{str(head): ["vertical_and_slash", 1000, 6096, 0.9] for head in range(32)} for _ in range(32)]
    for name in (ours, theirs):
        (tmp_path / name).write_text(json.dumps(table))
    MInference(file=str(tmp_path / ours)).check(LLAMA)
    with pytest.raises(PolicyError, match=r"was searched for Llama-3-8B-Instruct-262k, not for Llama-3.1-8B-Instruct"):
        MInference(file=str(tmp_path / theirs)).check(LLAMA)
    MInference(file=str(tmp_path / theirs)).check(replace(LLAMA, checkpoint=""))  # of a model without a name
