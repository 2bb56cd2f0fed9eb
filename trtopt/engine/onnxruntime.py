"""Backend `onnxruntime`: runs ONNX graphs, typed or not, and the FP32 baseline of every comparison. It builds nothing.

On the GPU, TF32 is disabled by default, as it rounds the factors of FP32 products to 10 bits of mantissa. `where` says
whether it is on.

Touches: reads the model; a typed graph is rewritten into a temporary folder and read from there.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from trtopt.counts import network_runs
from trtopt.engine import BuildPlan, Order
from trtopt.engine.ort.crash import check_loads
from trtopt.engine.ort.device import NO_PROVIDER, has_provider, without_cuda
from trtopt.engine.ort.rewritten import is_16_bit, rewritten, with_distinct_names
from trtopt.engine.runner.binding import BoundRun, DeviceTensor, Place, exhausted, failure, first_line
from trtopt.errors import DataError, ModelError, OutOfMemoryError, UsageError
from trtopt.events import Emit
from trtopt.parallel import cores, thread_limit
from trtopt.requires import require
from trtopt.types import Engine

Array = npt.NDArray[np.generic]
DEVICES = ("auto", "cpu", "cuda", "cuda:N")
_CPU = Place("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaOptions:
    """Options of onnxruntime's CUDA provider.

    Attributes:
        tf32: allow TF32, which rounds the factors of FP32 products.
        nhwc: use channels-last convolutions, which tensor cores prefer. None enables them where tensor cores are used:
            with TF32 or 16-bit types. (A ResNet-50 in true FP32 took a fifth longer with them on an H200.)
        graphs: capture a CUDA graph for each `bind`, which removes launch gaps that dominate at small batches. Every
            operator must then run on the GPU.
        memory_limit: largest memory in bytes that the session may allocate for weights, activations and outputs (0 for
            no limit). Inputs that `bind` copies are not included.
        repeatable: choose the algorithms of convolutions by rules, so that every process on such a GPU computes the
            same values. By default they are timed, and the choice varies.
    """

    tf32: bool = False
    nhwc: bool | None = None
    graphs: bool = False
    memory_limit: int = 0
    repeatable: bool = False


_EXACT = CudaOptions()
REPEATABLE = CudaOptions(repeatable=True)
_UNSOUND = ["ClipQuantFusion", "ClipQuantRewrite", "ReluQuantFusion", "ReluQuantRewrite", "MatmulTransposeFusion"]
"""Optimizers to disable. The first four remove a Relu or Clip that is implied by the range of the following
QuantizeLinear, and mistake the zero point of FP8 for the lowest integer: Relus disappear, or the model does not load
(onnxruntime 1.31). The last forgets the Transpose of a scaled matrix in a product with a vector (onnxruntime 1.32)."""

_SAME_NAME = "two nodes with same node name"
"""Part of onnxruntime's message for a model that ONNX's checker and TensorRT accept."""

_Value = TypeVar("_Value")


def check_options(plan: BuildPlan) -> None:
    """Raise UsageError for an option of a builder."""
    for flag in plan.flags():
        raise UsageError(
            f"{flag} cannot be used with --backend {plan.backend}",
            why="its result is the typed ONNX graph, so there is nothing to build",
            fix=f"Omit {flag}",
        )


def build(order: Order, out: Path, *, emit: Emit) -> Engine:  # noqa: ARG001 - the interface of a backend
    """Return the typed graph itself as the engine."""
    typed = order.typed
    return Engine(
        path=typed.onnx.path,
        digest=typed.onnx.digest,
        backend="onnxruntime",
        builder="the typed ONNX graph itself",
        device=order.device,
        size_bytes=typed.onnx.path.stat().st_size,
        audit=typed.counts(),
        audited="typed graph",
    )


class OrtRunner:
    """Session of onnxruntime.

    `where` names the version and the device, as reports show them; `place` is the device of the tensors; `callers` is
    the number of threads that should call `run` at the same time.
    """

    def __init__(
        self, session: Any, where: str, place: Place = _CPU, *, graphs: bool = False, callers: int = 1
    ) -> None:
        self.where = where
        self.place = place
        self.callers = callers
        self.inputs = tuple(value.name for value in session.get_inputs())
        self.outputs = tuple(value.name for value in session.get_outputs())
        self._session = session
        self._graph_ids = itertools.count(1) if graphs else itertools.repeat(0)  # 0: no CUDA graph

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run once and return every output by name. Entries of `feed` that are not inputs are ignored.

        Raises:
            DataError: an input is missing, or onnxruntime rejects the feed or fails on it.
            OutOfMemoryError: the memory is exhausted.
        """
        inputs = self._inputs_of(feed)
        network_runs.add()
        try:
            results = self._session.run(self.outputs, inputs)
        except Exception as error:
            raise failure(error, {name: array.shape for name, array in feed.items()}) from error
        return dict(zip(self.outputs, results, strict=True))

    def bind(self, feed: Mapping[str, Array | DeviceTensor]) -> BoundRun:
        """Bind inputs and outputs to buffers on the device, copy `feed` into the inputs, and run once.

        A `DeviceTensor` is used in place, and the caller must keep it alive. Entries of `feed` that are not inputs are
        ignored.

        Raises:
            DataError: an input is missing, onnxruntime rejects the feed or fails on it, or the dtype of an output does
                not exist in numpy.
            OutOfMemoryError: the memory is exhausted.
        """
        return BoundRun(self._session, self.place, self._inputs_of(feed), next(self._graph_ids))

    def _inputs_of(self, feed: Mapping[str, _Value]) -> dict[str, _Value]:
        """Return the entries of a feed that are inputs of the model."""
        if missing := [name for name in self.inputs if name not in feed]:
            raise DataError(
                f"no data for input {', '.join(missing)}", why=f"the sample has {', '.join(feed) or 'none'}"
            )
        return {name: feed[name] for name in self.inputs}


def open_runner(
    path: Path, *, device: str = "cpu", cuda: CudaOptions = _EXACT, callers: int = 1, simulates: bool = True
) -> OrtRunner:
    """Load an ONNX file for inference.

    On the CPU, a graph with 16-bit types is rewritten by `simulate`, as onnxruntime lacks faithful kernels for them.
    CUDA has real 16-bit kernels.

    Args:
        path: the ONNX file.
        device: `cpu`, `cuda` (`cuda:1` is the second GPU), or `auto` (CUDA if it works, else the CPU).
        cuda: options of the CUDA provider.
        callers: number of threads that will call `run` at the same time, sharing the cores. Ignored on a GPU, where the
            runner always has one caller.
        simulates: rewrite 16-bit types. A graph that only casts to such a type and back needs none of it.

    Raises:
        ModelError: onnxruntime cannot load the file, or cannot capture it as a CUDA graph.
        EnvironmentUnableError: `device` is `cuda` and CUDA does not work.
        OutOfMemoryError: the memory is exhausted while loading.
        MissingDependencyError: onnxruntime is not installed.
        UsageError: `device` is unknown.
    """
    parsed = re.fullmatch(r"(auto|cpu|cuda)(?:(?<=cuda):(\d+))?", device)
    if parsed is None:
        raise UsageError(f"unknown device {device!r}", fix=f"Choose one of {', '.join(DEVICES)}")
    device_kind, index = parsed.groups()
    ort = require("onnxruntime")
    version = f"onnxruntime {ort.__version__}"
    if device_kind != "cpu":
        place = Place("cuda", int(index or 0))
        session, why = _cuda_session(ort, path, place, cuda)
        if session is not None:
            return OrtRunner(session, f"{version}, {_described(place, cuda)}", place, graphs=cuda.graphs)
        if device_kind == "cuda":
            raise without_cuda(why)
    typed, simulated = rewritten(path, simulates=simulates)
    # All callers share the session's thread pool and take part in its work. The pool counts the calling thread as one
    # of its threads, so the callers beyond the first are subtracted from the cores. 0 means one thread per core.
    threads = max(1, cores() - callers + 1) if callers > 1 or thread_limit() else 0
    if typed is None:
        session = _session(ort, path, "CPUExecutionProvider", threads=threads)
        return OrtRunner(session, f"{version}, CPU", callers=callers)
    with tempfile.TemporaryDirectory(prefix="trtopt-") as folder:
        from trtopt.graph.prepare import save

        file = Path(folder) / "simulated.onnx"
        save(typed, file)
        session = _session(ort, file, "CPUExecutionProvider", threads=threads)
    where = f"{version}, CPU, 16-bit rounding simulated" if simulated else f"{version}, CPU"
    return OrtRunner(session, where, callers=callers)


def open_as_loaded(path: Path) -> OrtRunner:
    """Load an ONNX file as its users do: on the CPU, with onnxruntime's default options.

    Raises:
        ModelError: onnxruntime cannot load it, or crashes.
        OutOfMemoryError: the memory is exhausted while loading.
        MissingDependencyError: onnxruntime is not installed.
    """
    ort = require("onnxruntime")
    check_loads(path)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _not_loaded(path, error) from error
    return OrtRunner(session, f"onnxruntime {ort.__version__}, CPU")


def _cuda_session(ort: Any, path: Path, place: Place, cuda: CudaOptions) -> tuple[Any, str]:
    """Return a session on a GPU, or None and the reason.

    Raises:
        ModelError: the model itself is the problem: onnxruntime cannot load it on the CPU either, or cannot capture it
            as a CUDA graph.
    """
    if not has_provider(ort):
        return None, NO_PROVIDER
    nhwc = cuda.nhwc if cuda.nhwc is not None else cuda.tf32 or is_16_bit(path)
    options = {
        "device_id": str(place.index),
        "use_tf32": str(int(cuda.tf32)),
        "prefer_nhwc": str(int(nhwc)),
        "enable_cuda_graph": str(int(cuda.graphs)),
        # By default the arena doubles when it grows. Growing by exactly the requested size makes memory measurable.
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC" if cuda.repeatable else "EXHAUSTIVE",
    }
    if cuda.memory_limit:
        options["gpu_mem_limit"] = str(cuda.memory_limit)
    # Loads the CUDA and cuDNN libraries of NVIDIA's pip packages, and prints those that it does not find.
    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()
    try:
        session = _session(ort, path, ("CUDAExecutionProvider", options), "CPUExecutionProvider")
    except ModelError as error:
        if cuda.graphs and "graph capture" in error.why:
            raise ModelError(f"{path.name} cannot run as a CUDA graph", why=error.why) from error
        # Find out whether the model or the GPU is the problem (no such device, a driver too old): if the model loads on
        # the CPU, it is the GPU. Otherwise this raises the model's own error.
        _session(ort, path, "CPUExecutionProvider")
        return None, error.why
    # onnxruntime may fall back to the CPU without an error, so check which provider it uses.
    return (session, "") if "CUDAExecutionProvider" in session.get_providers() else (None, NO_PROVIDER)


def _described(place: Place, cuda: CudaOptions) -> str:
    """Return the device and its options, as in "CUDA device 1, TF32 off, CUDA graphs"."""
    device = f"CUDA device {place.index}" if place.index else "CUDA"
    extras = [f"TF32 {'on' if cuda.tf32 else 'off'}", *(["CUDA graphs"] if cuda.graphs else [])]
    return ", ".join([device, *extras])


def _session(ort: Any, path: Path, *providers: str | tuple[str, dict[str, str]], threads: int = 0) -> Any:
    """Return an onnxruntime session on the first of the providers that works.

    Raises:
        ModelError: onnxruntime cannot load the model.
        OutOfMemoryError: the memory is exhausted.
    """
    ort.set_default_logger_severity(4)  # fatal errors only: failures are raised as exceptions anyway
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads  # 0: one per core
    # Keep Q/DQ pairs as they are: the CPU's fused integer kernels saturate and round differently from TensorRT.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # By default the threads spin after a run, and take the cores from the code that processes the outputs.
    options.add_session_config_entry("session.force_spinning_stop", "1")

    def load(model: str | bytes) -> Any:
        # By default a failure of the GPU is only printed, and the session continues on the CPU.
        return ort.InferenceSession(
            model, options, providers=list(providers), enable_fallback=0, disabled_optimizers=_UNSOUND
        )

    try:
        try:
            return load(str(path))
        except Exception as error:
            if _SAME_NAME not in str(error):
                raise
            folder = "session.model_external_initializers_file_folder_path"
            options.add_session_config_entry(folder, str(path.resolve().parent))
            return load(with_distinct_names(path))
    except Exception as error:
        raise _not_loaded(path, error) from error


def _not_loaded(path: Path, error: Exception) -> OutOfMemoryError | ModelError:
    if exhausted(error):
        return OutOfMemoryError(f"out of memory while loading {path.name}", why=first_line(error))
    why = first_line(error)
    unknown = re.search(r"(\S+)\(-?\d+\) is not a registered function/op", why)
    fix = "Export the network without it, or convert without samples: -p fp16 --no-compare" if unknown else ""
    return ModelError(
        f"onnxruntime cannot load {path.name}",
        why=f"it does not have the operator {unknown[1]}" if unknown else why,
        fix=fix,
    )
