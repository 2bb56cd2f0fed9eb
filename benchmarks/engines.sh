#!/usr/bin/env bash
# Measure the engines of one network on a GPU with a real TensorRT: benchmarks/engines.sh NETWORK ZOO OUT.json
#
# NETWORK is one that zoo.py made (ZOO/NETWORK.onnx, .calib.npz, .eval.npz), `digits`, or `resnet50` or `bert` (made here,
# with random weights). PYTHON names the interpreter, ROWS the rows, TUNED a run of `trtopt tune` to add, TACTICS the tactic
# sources. It ends within 9 minutes.
set -euo pipefail
network=$1 zoo=$2 out=$3
python=${PYTHON:-python}
here=$(cd "$(dirname "$0")" && pwd)
model=$zoo/$network.onnx calib=$zoo/$network.calib.npz eval=$zoo/$network.eval.npz
case $network in
    resnet50 | bert)
        "$python" - "$zoo" "$here" "$network" <<'PY'
import sys
from pathlib import Path

import numpy as np

zoo, network = Path(sys.argv[1]), sys.argv[3]
sys.path.insert(0, sys.argv[2])
from models import bert_base, resnet50

zoo.mkdir(parents=True, exist_ok=True)
{"resnet50": resnet50, "bert": bert_base}[network](zoo / f"{network}.onnx")
for seed, part in enumerate(("calib", "eval")):
    random = np.random.default_rng(seed)
    if network == "resnet50":
        feed = {"input": random.normal(size=(64, 3, 224, 224)).astype(np.float32)}
    else:  # few samples: onnxruntime runs them on the CPU
        mask = (np.arange(128) < random.integers(16, 129, (16, 1))).astype(np.int64)
        feed = {"input_ids": random.integers(0, 30522, (16, 128)) * mask, "attention_mask": mask}
    np.savez(zoo / f"{network}.{part}.npz", **feed)
PY
        ;;
    digits)
        model=$here/../samples/digits/model.onnx
        calib=$here/../samples/digits/eval.npz eval=$calib
        ;;
esac
labels=()
[ -f "$zoo/$network.labels.npy" ] && labels=(--labels "$zoo/$network.labels.npy")
exec timeout 530 "$python" "$here/engines.py" "$model" "$out" --calib "$calib" --data "$eval" \
    --rows ${ROWS:-fp32 fp16 int8 native qdq} ${TACTICS:+"--tactic-sources=$TACTICS"} "${labels[@]}" ${TUNED:+--tuned "$TUNED"}
