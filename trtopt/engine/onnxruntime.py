"""Run an ONNX graph, typed or not, in onnxruntime: the backend `onnxruntime`, and the baseline of every comparison.

Touches: reads the model; a typed graph too large for memory is written to a temporary folder and read from there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trtopt.engine.simulate import simulate
from trtopt.errors import DataError, EnvironmentUnableError, ModelError
from trtopt.requires import require

Array = npt.NDArray[np.generic]
DEVICES = ("auto", "cpu", "cuda")


class OrtRunner:
    """An onnxruntime session. `where` says what runs, where, for the tables that show its numbers."""

    def __init__(self, session: Any, where: str) -> None:
        self.where = where
        self.inputs = tuple(value.name for value in session.get_inputs())
        self.outputs = tuple(value.name for value in session.get_outputs())
        self._session = session

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output for one feed.

        Raises:
            DataError: onnxruntime refuses the feed or fails on it.
        """
        try:
            results = self._session.run(self.outputs, {name: feed[name] for name in self.inputs})
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
            raise DataError(f"onnxruntime cannot run the model on {shapes}", why=_first_line(error)) from error
        return dict(zip(self.outputs, results, strict=True))


def open_runner(path: Path, *, device: str = "cpu") -> OrtRunner:
    """Open an ONNX file for running on `cpu`, `cuda`, or `auto` (CUDA where it works, else the CPU).

    A graph with 16-bit types runs on the CPU as `simulate` rewrites it; CUDA has real kernels for them.

    Raises:
        ModelError: onnxruntime cannot load it.
        EnvironmentUnableError: `cuda` was asked for and is not there.
        MissingDependencyError: onnxruntime is not installed.
    """
    ort = require("onnxruntime")
    version = f"onnxruntime {ort.__version__}"
    if device in ("auto", "cuda"):
        has_cuda = "CUDAExecutionProvider" in ort.get_available_providers()
        session = _session(ort, path, ["CUDAExecutionProvider", "CPUExecutionProvider"]) if has_cuda else None
        # onnxruntime falls back to the CPU without an error: what it says it uses is what counts.
        if session is not None and "CUDAExecutionProvider" in session.get_providers():
            return OrtRunner(session, f"{version}, CUDA")
        if device == "cuda":
            raise EnvironmentUnableError(
                "onnxruntime has no working CUDA provider here",
                why="the CPU package is installed, or the driver or CUDA libraries are missing",
                fix="Install 'trtopt[gpu]' on a machine with an NVIDIA driver, or use --device cpu",
            )
    typed = _simulated(path)
    if typed is None:
        return OrtRunner(_session(ort, path, ["CPUExecutionProvider"]), f"{version}, CPU")
    with tempfile.TemporaryDirectory(prefix="trtopt-") as folder:
        from trtopt.export.prepare import save

        file = Path(folder) / "simulated.onnx"
        save(typed, file)
        session = _session(ort, file, ["CPUExecutionProvider"])
    return OrtRunner(session, f"{version}, CPU, 16-bit rounding simulated")


def _simulated(path: Path) -> Any:
    """The model rewritten for the CPU when it computes in 16 bits, else None."""
    import onnx

    from trtopt.export.onnx import load_ir
    from trtopt.export.prepare import infer_shapes

    proto = onnx.load(str(path), load_external_data=False)
    halves = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    cast = any(
        attribute.i in halves
        for node in proto.graph.node
        if node.op_type == "Cast"
        for attribute in node.attribute
        if attribute.name == "to"
    )
    if not cast and not any(tensor.data_type in halves for tensor in proto.graph.initializer):
        return None
    model = load_ir(path)
    infer_shapes(model)
    return model if simulate(model) else None


def _session(ort: Any, path: Path, providers: list[str]) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # Q/DQ pairs stay what they are: fused integer kernels of the CPU would saturate and round in their own ways.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # The pool must not spin while the calibrator's histograms want the cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise ModelError(f"onnxruntime cannot load {path.name}", why=_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
