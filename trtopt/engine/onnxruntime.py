"""Run an ONNX graph, typed or not, in onnxruntime: the backend `onnxruntime`, and the baseline of every comparison.

Touches: reads the model; a typed graph too large for memory is written to a temporary folder and read from there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trtopt.engine.simulate import simulate
from trtopt.errors import DataError, EnvironmentUnableError, ModelError
from trtopt.requires import require

if TYPE_CHECKING:
    import onnx

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
            DataError: an input is missing, or onnxruntime refuses the feed or fails on it.
        """
        if missing := [name for name in self.inputs if name not in feed]:
            raise DataError(
                f"no data for input {', '.join(missing)}", why=f"the sample has {', '.join(feed) or 'none'}"
            )
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
    from trtopt.export.onnx import load_ir, load_proto
    from trtopt.export.prepare import infer_shapes

    if not _has_halves(load_proto(path).graph):
        return None
    model = load_ir(path)
    infer_shapes(model)
    return model if simulate(model) else None


def _has_halves(graph: onnx.GraphProto) -> bool:
    """Whether an input, a constant or a cast of the graph or of an inner one is of a 16-bit type."""
    import onnx

    halves = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    return (
        any(value.type.tensor_type.elem_type in halves for value in graph.input)
        or any(tensor.data_type in halves for tensor in graph.initializer)
        or any(attribute.t.data_type in halves for attribute in attributes if attribute.HasField("t"))
        or any(attribute.i in halves for attribute in attributes if attribute.name in ("to", "dtype", "output_dtype"))
        or any(_has_halves(attribute.g) for attribute in attributes if attribute.HasField("g"))
    )


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
