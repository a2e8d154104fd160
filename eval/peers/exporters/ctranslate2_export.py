"""Llama checkpoint → CTranslate2 in fp32, ids as vocabulary. Run as: python ctranslate2_export.py MODEL TARGET."""

import sys

from ctranslate2.converters.transformers import LlamaLoader
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], torch_dtype="float32", trust_remote_code=False)
spec = LlamaLoader().get_model_spec(model)
spec.register_vocabulary([str(token) for token in range(model.config.vocab_size)])
spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "0"
spec.config.layer_norm_epsilon = model.config.rms_norm_eps
spec.validate()
spec.optimize(quantization="float32")
spec.save(sys.argv[2])
