"""Small networks, converted from end to end by the real program, and judged independently of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from support import Done

from trtopt.engine.onnxruntime import open_runner

Arrays = Mapping[str, np.ndarray]
Cli = Callable[..., Done]


def network(folder: Path, body: str, weights: Arrays, opset: int = 17) -> Path:
    """Write `model.onnx`, given its text form and its initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> net {body}')
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    onnx.save(proto, folder / "model.onnx")
    return folder / "model.onnx"


def convert(cli: Cli, folder: Path, precision: str, samples: Arrays | Path, *flags: object) -> Done:
    """Convert `model.onnx` of the folder to `run`, without TensorRT: calibrate on the samples, and compare on them."""
    if isinstance(samples, Path):
        data = samples
    else:
        data = folder / "data.npz"
        np.savez(data, **samples)
    calib = ("--calib", data) if precision in ("int8", "fp8") else ()
    common = ["-o", folder / "run", "--allow-inconclusive"]
    if "--backend" not in flags:
        common += ["--backend", "onnxruntime"]
    return cli("convert", folder / "model.onnx", "-p", precision, "--data", data, *calib, *common, *flags)


def feeds(samples: Arrays, count: int = 8, *, batch: bool = True) -> list[dict[str, np.ndarray]]:
    """Return some samples as feeds, with a batch axis."""
    return [{name: array[i : i + 1] if batch else array[i] for name, array in samples.items()} for i in range(count)]


def sqnr(folder: Path, fed: list[dict[str, np.ndarray]], typed: str = "run/typed.onnx") -> float:
    """Return the least SQNR, in dB, of the typed graph's floating-point outputs.

    Equal infinities are left out. The result is minus infinity if an output is NaN, or infinite where FP32's is not.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    reference = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in reference.get_outputs()]
    candidate = open_runner(folder / typed)
    energies = {name: np.zeros(2) for name in names}
    for feed in fed:
        quantized = candidate.run(feed)
        for name, exact in zip(names, reference.run(names, feed), strict=True):
            if exact.dtype.kind != "f":
                continue
            x, y = exact.astype(np.float64), quantized[name].astype(np.float64)
            same = x == y
            energies[name] += [np.square(x[~same]).sum() + np.square(x[same & (np.abs(x) < 1e9)]).sum(),
                               np.square(x[~same] - y[~same]).sum()]  # fmt: skip
    ratios = [10 * np.log10(signal / max(error, 1e-30)) if np.isfinite(error) else -np.inf
              for signal, error in energies.values() if signal]  # fmt: skip
    return float(min(ratios))


def ops(path: Path) -> list[str]:
    """Return the operators of a graph, in order."""
    return [node.op_type for node in onnx.load(path).graph.node]
