"""GGUF file → transformers checkpoint in float32. Run as: python dequantise.py FILE TARGET."""

from __future__ import annotations

import sys

import torch

from service.engine.loading.sources import find_model

source = find_model(sys.argv[1])
model = source.build(torch.float32, "cpu", {"device_map": None})
model.generation_config = type(model.generation_config)()  # a file's sampling may be none that transformers would save
model.save_pretrained(sys.argv[2])
source.tokenizer().save_pretrained(sys.argv[2])
