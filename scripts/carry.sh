#!/usr/bin/env bash
# The wheels that `make gpu-check` needs on a machine that has PyTorch, transformers and Triton but no network:
#
#   bash scripts/carry.sh build/carried 3.12        # here, for the Python there
#   python -m eval.bench.gpu_check --wheels build/carried --output out/gpu_check.json        # there
set -euo pipefail
target=${1:-build/carried} version=${2:-3.12}
platforms=()
for platform in manylinux_2_34 manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014; do
  platforms+=(--platform "${platform}_x86_64")
done
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" \
  --implementation cp "${platforms[@]}" -d "$target" \
  structlog llguidance pydantic pydantic-settings annotated-types typing-inspection python-dotenv
# pydantic wants one version of its core
core=$(unzip -p "$target"/pydantic-2*.whl '*/METADATA' | sed -n 's/^Requires-Dist: pydantic-core==\([0-9.]*\).*/\1/p')
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" \
  --implementation cp "${platforms[@]}" -d "$target" "pydantic-core==$core"
ls -l "$target"
