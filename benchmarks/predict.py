"""Throughput of `trtopt predict` beside a bare loop over the same runner and the same samples, as a ratio.

    python benchmarks/predict.py [MODEL DATA]

Without arguments: samples/digits, and a network of eight convolutions over random images. The bare loop has its samples
in memory, joined into batches of the same size, and drops the outputs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from trtopt.calibrate.observe import callers
from trtopt.commands.predict import predict
from trtopt.data import open_dataset
from trtopt.engine.onnxruntime import open_runner
from trtopt.graph.file import describe
from trtopt.parallel import in_order
from trtopt.plan import DataPlan, PredictPlan

ROOT = Path(__file__).resolve().parent.parent
BATCH = 32
ROUNDS = 3


def bare(model: Path, data: Path) -> float:
    """Return the samples per second of a loop that only runs."""
    dataset = open_dataset(str(data), describe(model).inputs)
    runner = open_runner(model, callers=callers())
    feeds = [dataset.load(index) for index in range(len(dataset))]
    joined = [
        {name: np.concatenate([feed[name] for feed in feeds[start : start + BATCH]]) for name in feeds[0]}
        for start in range(0, len(feeds), BATCH)
    ]
    start = time.perf_counter()
    for _ in in_order(runner.run, joined, runner.callers):
        pass
    return len(dataset) / (time.perf_counter() - start)


def convolutions(folder: Path) -> tuple[Path, Path]:
    """Write a network of 3x3 convolutions with 32 channels over 64x64 pixels, and 512 random images."""
    random = np.random.default_rng(0)
    shapes = [(32, 3, 3, 3), *[(32, 32, 3, 3)] * 7]
    weights = [
        numpy_helper.from_array(random.normal(0, 0.05, shape).astype(np.float32), f"w{i}")
        for i, shape in enumerate(shapes)
    ]
    nodes = []
    for i in range(len(shapes)):
        nodes.append(helper.make_node("Conv", [f"x{i}" if i else "x", f"w{i}"], [f"c{i}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"x{i + 1}"]))
    nodes += [
        helper.make_node("GlobalAveragePool", [f"x{len(shapes)}"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, 64, 64))]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 32))]
    graph = helper.make_graph(nodes, "net", inputs, outputs, weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "net.onnx")
    np.save(folder / "images.npy", random.normal(size=(512, 3, 64, 64)).astype(np.float32))
    return folder / "net.onnx", folder / "images.npy"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = [(ROOT / "samples/digits/model.onnx", ROOT / "samples/digits/eval.npz"), convolutions(folder)]
        if len(sys.argv) == 3:
            pairs = [(Path(sys.argv[1]), Path(sys.argv[2]))]
        for model, data in pairs:
            best_bare, best = 0.0, 0.0
            for i in range(ROUNDS):  # alternating, as other work on the machine slows both
                best_bare = max(best_bare, bare(model, data))
                plan = PredictPlan(
                    run=model, out=folder / f"{model.stem}{i}.parquet", data=DataPlan(source=str(data)), batch=BATCH
                )
                best = max(best, predict(plan).rate)
            print(f"{model.name}: bare {best_bare:.0f}, predict {best:.0f} samples/s: {best / best_bare:.2f}")


if __name__ == "__main__":
    main()
