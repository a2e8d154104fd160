"""Checkpoint → OpenVINO IR, by optimum-intel. Run as: python openvino_export.py MODEL TARGET [int8|int4].

Weights are left as they are, or compressed with nncf's defaults.
"""

import sys

from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

bits = {"int8": 8, "int4": 4}[sys.argv[3]] if len(sys.argv) > 3 else None
model = OVModelForCausalLM.from_pretrained(
    sys.argv[1],
    export=True,
    load_in_8bit=False,
    compile=False,
    trust_remote_code=False,
    quantization_config=OVWeightQuantizationConfig(bits=bits) if bits else None,
)
model.save_pretrained(sys.argv[2])
