"""Checkpoint → OpenVINO IR, by optimum-intel, weights uncompressed. Run as: python openvino_export.py MODEL TARGET."""

import sys

from optimum.intel import OVModelForCausalLM

model = OVModelForCausalLM.from_pretrained(
    sys.argv[1], export=True, load_in_8bit=False, compile=False, trust_remote_code=False
)
model.save_pretrained(sys.argv[2])
