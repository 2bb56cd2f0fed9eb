#!/usr/bin/env bash
# Run everything that needs an NVIDIA GPU: the tests, then measurements of ResNet-50, printed as tables.
#
#   PYTHON=python3 benchmarks/gpu.sh [FOLDER]
#
# It needs the packages of `pip install '.[gpu,dev]'`, and the CUDA and cuDNN libraries that onnxruntime-gpu requires.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
python=${PYTHON:-python3}
folder=${1:-$(mktemp -d)}
failed=()

part() {
  echo; echo "== $* =="
  "$@" || failed+=("$*")
}

mapfile -t tests < <(grep -rlE "mark\.gpu" tests --include="*.py")
part "$python" -m pytest -q -m gpu -rP "${tests[@]}"
part "$python" benchmarks/gpu.py models "$folder"
part "$python" benchmarks/gpu.py bare "$folder"
part "$python" -m trtopt bench "$folder/resnet50.onnx" "$folder/resnet50-fp16.onnx" --device cuda --tf32 \
  --batch 1,8,16,32,64 -o "$folder/bench"
part "$python" benchmarks/gpu.py against "$folder"
part "$python" -m trtopt bench "$folder/resnet50-fp16.onnx" --device cuda --max-batch --memory-limit 1GiB -o "$folder/limit"
part "$python" benchmarks/gpu.py limit "$folder"
part "$python" -m trtopt bench "$folder/resnet50-fp16.onnx" --device cuda --max-batch --latency-limit 20ms \
  -o "$folder/limit-20ms"
part "$python" benchmarks/gpu.py calibration "$folder"
part "$python" benchmarks/gpu.py agreement "$folder"

if ((${#failed[@]})); then
  printf 'failed: %s\n' "${failed[@]}"
  exit 1
fi
