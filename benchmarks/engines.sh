#!/usr/bin/env bash
# Measure the engines of one network on a GPU with a real TensorRT: benchmarks/engines.sh NETWORK ZOO OUT.json
#
# NETWORK is one that zoo.py made (ZOO/NETWORK.onnx, .calib.npz, .eval.npz), `digits`, or `resnet50` (made here, with
# random weights). PYTHON names the interpreter, ROWS the rows, TACTICS the tactic sources. It ends within 9 minutes.
set -euo pipefail
network=$1 zoo=$2 out=$3
python=${PYTHON:-python}
here=$(cd "$(dirname "$0")" && pwd)
model=$zoo/$network.onnx calib=$zoo/$network.calib.npz eval=$zoo/$network.eval.npz
case $network in
    resnet50)
        "$python" - "$zoo" "$here" <<'PY'
import sys
from pathlib import Path

import numpy as np

zoo = Path(sys.argv[1])
sys.path.insert(0, sys.argv[2])
from models import resnet50

zoo.mkdir(parents=True, exist_ok=True)
resnet50(zoo / "resnet50.onnx")
for seed, part in enumerate(("calib", "eval")):
    images = np.random.default_rng(seed).normal(size=(64, 3, 224, 224)).astype(np.float32)
    np.savez(zoo / f"resnet50.{part}.npz", input=images)
PY
        ;;
    digits)
        model=$here/../samples/digits/model.onnx
        calib=$here/../samples/digits/eval.npz eval=$calib
        ;;
esac
labels=()
[ -f "$zoo/$network.labels.npy" ] && case $network in mnist | efflite0) labels=(--labels "$zoo/$network.labels.npy") ;; esac
exec timeout 530 "$python" "$here/engines.py" "$model" "$out" --calib "$calib" --data "$eval" --evaluate "$eval" \
    --native "$calib" --rows ${ROWS:-fp32 fp16 int8 native} ${TACTICS:+"--tactic-sources=$TACTICS"} "${labels[@]}"
