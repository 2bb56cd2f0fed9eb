"""Run an ONNX graph, typed or not, in onnxruntime: the backend `onnxruntime`, and the baseline of every comparison.

On the GPU, FP32 is FP32 unless asked otherwise: TF32, which rounds the factors of products to 10 bits of mantissa, is
off, and `where` says which it is.

Touches: reads the model; a typed graph too large for memory is written to a temporary folder and read from there.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from trtopt.engine.binding import BoundRun, DeviceTensor, Place, exhausted, failure, first_line
from trtopt.engine.simulate import simulate
from trtopt.errors import DataError, EnvironmentUnableError, ModelError, OutOfMemoryError, UsageError
from trtopt.requires import require

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[np.generic]
DEVICES = ("auto", "cpu", "cuda", "cuda:N")
_CPU = Place("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaOptions:
    """How the CUDA provider runs a model.

    `tf32` lets it round the factors of FP32 products. `nhwc` lets it keep the channels of convolutions last, as tensor
    cores want it; None: where they compute, with TF32 or in 16 bits. (On an H200 a ResNet-50 in FP32 proper took a
    fifth longer with it.) `graphs` captures a CUDA graph for each `bind`, which spares small batches the time between
    kernels; every operator must run on the GPU then. `memory_limit` is the most that the session may allocate for
    weights, activations and outputs, in bytes (0: no limit); the inputs that `bind` copies are not in it.
    """

    tf32: bool = False
    nhwc: bool | None = None
    graphs: bool = False
    memory_limit: int = 0


_EXACT = CudaOptions()
_UNSOUND = ["ClipQuantFusion", "ClipQuantRewrite", "ReluQuantFusion", "ReluQuantRewrite"]
"""They drop a Relu or Clip that the limits of the Q after it imply, and take the zero of FP8 for the lowest value of an
integer: Relus vanish, or the model does not load (seen in onnxruntime 1.31)."""

_Value = TypeVar("_Value")


class OrtRunner:
    """An onnxruntime session. `where` says what runs, where, for the tables that show its numbers; `place` is where its
    tensors are; `callers` is how many threads may well call `run` at once."""

    def __init__(
        self, session: Any, where: str, place: Place = _CPU, *, graphs: bool = False, callers: int = 1
    ) -> None:
        self.where = where
        self.place = place
        self.callers = callers
        self.inputs = tuple(value.name for value in session.get_inputs())
        self.outputs = tuple(value.name for value in session.get_outputs())
        self._session = session
        self._graph_ids = itertools.count(1) if graphs else itertools.repeat(0)

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output for one feed.

        Raises:
            DataError: an input is missing, or onnxruntime refuses the feed or fails on it.
            OutOfMemoryError: the memory is exhausted.
        """
        given = self._given(feed)
        try:
            results = self._session.run(self.outputs, given)
        except Exception as error:
            raise failure(error, {name: array.shape for name, array in feed.items()}) from error
        return dict(zip(self.outputs, results, strict=True))

    def bind(self, feed: Mapping[str, Array | DeviceTensor]) -> BoundRun:
        """Bind the inputs and outputs to buffers where the model runs, filled from `feed`, and run once.

        A `DeviceTensor` is read where it is; the caller keeps it alive. Inputs that the model has not are ignored.

        Raises:
            DataError: an input is missing, onnxruntime refuses the feed or fails on it, or an output has no numpy type.
            OutOfMemoryError: the memory is exhausted.
        """
        return BoundRun(self._session, self.place, self._given(feed), next(self._graph_ids))

    def _given(self, feed: Mapping[str, _Value]) -> dict[str, _Value]:
        if missing := [name for name in self.inputs if name not in feed]:
            raise DataError(
                f"no data for input {', '.join(missing)}", why=f"the sample has {', '.join(feed) or 'none'}"
            )
        return {name: feed[name] for name in self.inputs}


def open_runner(path: Path, *, device: str = "cpu", cuda: CudaOptions = _EXACT, callers: int = 1) -> OrtRunner:
    """Open an ONNX file for running on `cpu`, `cuda` (`cuda:1` is the second GPU), or `auto` (CUDA where it works, else
    the CPU).

    A graph with 16-bit types runs on the CPU as `simulate` rewrites it; CUDA has real kernels for them. On the CPU,
    `callers` threads share the cores, each running a feed of its own; a GPU is asked by one.

    Raises:
        ModelError: onnxruntime cannot load it, or cannot capture it as a CUDA graph.
        EnvironmentUnableError: CUDA was asked for and is not there.
        OutOfMemoryError: the memory does not hold the model.
        MissingDependencyError: onnxruntime is not installed.
        UsageError: there is no such kind of device.
    """
    wanted = re.fullmatch(r"(auto|cpu|cuda)(?:(?<=cuda):(\d+))?", device)
    if wanted is None:
        raise UsageError(f"unknown device {device!r}", fix=f"Choose one of {', '.join(DEVICES)}")
    ort = require("onnxruntime")
    version = f"onnxruntime {ort.__version__}"
    if wanted[1] != "cpu":
        place = Place("cuda", int(wanted[2] or 0))
        session, why = _cuda_session(ort, path, place, cuda)
        if session is not None:
            return OrtRunner(session, f"{version}, {_described(place, cuda)}", place, graphs=cuda.graphs)
        if wanted[1] == "cuda":
            raise EnvironmentUnableError(
                "onnxruntime has no working CUDA provider here",
                why=why,
                fix="Install 'trtopt[gpu]' on a machine with an NVIDIA driver, or use --device cpu",
            )
    typed = _simulated(path)
    # A session has one pool for all callers, who work beside it: of n threads, n - 1 are its own.
    threads = max(1, len(os.sched_getaffinity(0)) - callers + 1) if callers > 1 else 0
    if typed is None:
        session = _session(ort, path, "CPUExecutionProvider", threads=threads)
        return OrtRunner(session, f"{version}, CPU", callers=callers)
    with tempfile.TemporaryDirectory(prefix="trtopt-") as folder:
        from trtopt.export.prepare import save

        file = Path(folder) / "simulated.onnx"
        save(typed, file)
        session = _session(ort, file, "CPUExecutionProvider", threads=threads)
    return OrtRunner(session, f"{version}, CPU, 16-bit rounding simulated", callers=callers)


def _cuda_session(ort: Any, path: Path, place: Place, cuda: CudaOptions) -> tuple[Any, str]:
    """A session on that GPU, or none and why."""
    missing = "the CPU package is installed, or the driver or CUDA libraries are missing"
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return None, missing
    nhwc = cuda.nhwc if cuda.nhwc is not None else cuda.tf32 or _computes_in_halves(path)
    options = {
        "device_id": str(place.index),
        "use_tf32": str(int(cuda.tf32)),
        "prefer_nhwc": str(int(nhwc)),
        "enable_cuda_graph": str(int(cuda.graphs)),
        # Memory grows by what is needed, not by doubling: what a batch needs can then be measured.
        "arena_extend_strategy": "kSameAsRequested",
    }
    if cuda.memory_limit:
        options["gpu_mem_limit"] = str(cuda.memory_limit)
    ort.set_default_logger_severity(4)  # what is wrong comes back as an error, and is not to stand in the log as well
    with contextlib.redirect_stdout(io.StringIO()):  # it prints which libraries it did not find
        ort.preload_dlls()
    try:
        session = _session(ort, path, ("CUDAExecutionProvider", options), "CPUExecutionProvider")
    except ModelError as error:
        if cuda.graphs and "graph capture" in error.why:
            raise ModelError(f"{path.name} cannot run as a CUDA graph", why=error.why) from error
        # The model's fault, or the GPU's? A device that is not there, a driver too old: the CPU can load it then.
        _session(ort, path, "CPUExecutionProvider")
        return None, error.why
    # onnxruntime falls back to the CPU without an error: what it says it uses is what counts.
    return (session, "") if "CUDAExecutionProvider" in session.get_providers() else (None, missing)


def _described(place: Place, cuda: CudaOptions) -> str:
    device = f"CUDA device {place.index}" if place.index else "CUDA"
    extras = [f"TF32 {'on' if cuda.tf32 else 'off'}", *(["CUDA graphs"] if cuda.graphs else [])]
    return ", ".join([device, *extras])


def _simulated(path: Path) -> Any:
    """The model rewritten for the CPU when it computes in 16 bits, else None."""
    from trtopt.export.onnx import load_ir
    from trtopt.export.prepare import infer_shapes

    if not _computes_in_halves(path):
        return None
    model = load_ir(path)
    infer_shapes(model)
    return model if simulate(model) else None


def _computes_in_halves(path: Path) -> bool:
    from trtopt.export.onnx import load_proto

    return _has_halves(load_proto(path).graph)


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


def _session(ort: Any, path: Path, *providers: str | tuple[str, dict[str, str]], threads: int = 0) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads  # 0: one for each core
    # Q/DQ pairs stay what they are: fused integer kernels of the CPU would saturate and round in their own ways.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # The pool must not spin between runs: what is done with their results wants the cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        # Without `enable_fallback=0` a failure of the GPU is printed, and the CPU goes on in silence.
        return ort.InferenceSession(
            str(path), options, providers=list(providers), enable_fallback=0, disabled_optimizers=_UNSOUND
        )
    except Exception as error:
        if exhausted(error):
            raise OutOfMemoryError(f"memory does not hold {path.name}", why=first_line(error)) from error
        raise ModelError(f"onnxruntime cannot load {path.name}", why=first_line(error)) from error
