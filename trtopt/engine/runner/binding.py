"""Binding of an onnxruntime session to buffers on the device where the model runs, so that a run copies nothing.

The same code serves the CPU and the GPU. `trtopt bench` times bound runs; calibration on the GPU reads their tensors.

Touches: memory of the host or of the GPU, released with the objects.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trtopt.counts import network_runs
from trtopt.errors import DataError, OutOfMemoryError, TrtoptError
from trtopt.requires import require

Array = npt.NDArray[np.generic]

_EXHAUSTED = (
    "out of memory",
    "memory allocation",
    "failed to allocate memory",
    "bad_alloc",
    "bad allocation",
    "alloc_failed",
    "smaller than requested bytes",
)
"""Phrases, in lower case, with which onnxruntime's arena, CUDA, cuBLAS, cuDNN and C++ report exhausted memory."""


@dataclass(frozen=True, slots=True)
class Place:
    """Device on which a session keeps its tensors: `kind` is `cpu` or `cuda`, `index` the number of the device."""

    kind: str
    index: int = 0


@dataclass(frozen=True, slots=True)
class DeviceTensor:
    """Dense, row-major tensor: address on the device, shape, and dtype by its numpy name."""

    pointer: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class BoundRun:
    """Session with inputs and outputs at fixed addresses, for feeds of the same shapes. `OrtRunner.bind` creates it.

    `tensors` contains the inputs and outputs by name. Their addresses stay valid as long as this object exists, except
    for inputs that `read_from` replaces. Only one thread may use the object at a time.
    """

    def __init__(self, session: Any, place: Place, feed: Mapping[str, Array | DeviceTensor], graph_id: int) -> None:
        ort = require("onnxruntime")
        self.tensors: dict[str, DeviceTensor] = {}
        self._session, self._place = session, place
        self._binding = session.io_binding()
        self._inputs: dict[str, Any] = {}
        self._outputs: dict[str, Any] = {}
        self._shapes = {name: tuple(value.shape) for name, value in feed.items()}
        try:
            self._bind_inputs(ort, feed)
            self._bind_outputs(ort, [value.name for value in session.get_outputs()])
        except Exception as error:
            raise failure(error, self._shapes) from error
        self._options = ort.RunOptions()
        # onnxruntime keeps one captured CUDA graph per id. Each binding needs its own, as its addresses are fixed.
        if graph_id:
            self._options.add_run_config_entry("gpu_graph_id", str(graph_id))

    @property
    def input_bytes(self) -> int:
        """Total size of the inputs in bytes."""
        return sum(self.tensors[name].nbytes for name in self._shapes)

    @property
    def output_bytes(self) -> int:
        """Total size of the outputs in bytes."""
        return sum(self.tensors[name].nbytes for name in self._outputs)

    def run(self) -> None:
        """Run once on the contents of the input buffers, and return when the outputs are complete.

        Raises:
            OutOfMemoryError: the memory is exhausted.
            DataError: onnxruntime fails, or an output has another shape than when it was bound.
        """
        network_runs.add()
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:
            raise failure(error, self._shapes) from error

    def copy_in(self, feed: Mapping[str, Array]) -> None:
        """Copy a feed, which must have the bound shapes and dtypes, into the input buffers.

        Raises:
            DataError: an input is missing, has another shape or dtype, or is bound to memory of the caller.
        """
        for name, buffer in self._inputs.items():
            array, bound = feed.get(name), self.tensors[name]
            if array is None:
                raise DataError(f"no data for input {name}", why=f"the sample has {', '.join(feed) or 'none'}")
            if buffer is None:
                raise DataError(f"input {name} has no buffer", why="it is bound to memory of the caller")
            if array.shape != bound.shape or array.dtype.name != bound.dtype:
                raise DataError(
                    f"input {name} is {array.dtype} {list(array.shape)}",
                    why=f"its buffer is {bound.dtype} {list(bound.shape)}",
                    fix="Bind the model again for another shape",
                )
            buffer.update_inplace(array)

    def copy_out(self) -> dict[str, Array]:
        """Return copies of the outputs on the host, by name."""
        outputs = {name: value.numpy() for name, value in self._outputs.items()}
        # On the CPU, `numpy` returns a view of the buffer, which the next run overwrites. On a GPU it is a copy.
        if self._place.kind == "cpu":
            outputs = {name: np.array(view) for name, view in outputs.items()}
        return outputs

    def read_from(self, tensors: Mapping[str, DeviceTensor]) -> None:
        """Read inputs from other memory of the same device from now on. The caller must keep that memory alive.

        This does not work with CUDA graphs, as a captured graph contains the addresses.

        Raises:
            DataError: a tensor does not belong to an input, or has another shape or dtype than the bound one.
        """
        for name, tensor in tensors.items():
            bound = self.tensors[name] if name in self._inputs else None
            if bound is None or (bound.shape, bound.dtype) != (tensor.shape, tensor.dtype):
                raise DataError(
                    f"input {name} cannot be read from {tensor.dtype} {list(tensor.shape)}",
                    why=f"it is bound as {bound.dtype} {list(bound.shape)}" if bound else "the model has no such input",
                )
            self._read(name, tensor)

    def _bind_inputs(self, ort: Any, feed: Mapping[str, Array | DeviceTensor]) -> None:
        for name, value in feed.items():
            if isinstance(value, DeviceTensor):
                self._read(name, value)
                continue
            # On the CPU, onnxruntime uses the array itself as the buffer: copy it, as the caller may change it.
            array = np.array(value, order="C") if self._place.kind == "cpu" else np.ascontiguousarray(value)
            buffer = ort.OrtValue.ortvalue_from_numpy(array, self._place.kind, self._place.index)
            self._binding.bind_ortvalue_input(name, buffer)
            self._inputs[name] = buffer
            self.tensors[name] = DeviceTensor(buffer.data_ptr(), array.shape, array.dtype.name)

    def _read(self, name: str, tensor: DeviceTensor) -> None:
        """Bind an input to memory of the caller."""
        self._binding.bind_input(
            name, self._place.kind, self._place.index, np.dtype(tensor.dtype).type, tensor.shape, tensor.pointer
        )
        self._inputs[name] = None
        self.tensors[name] = tensor

    def _bind_outputs(self, ort: Any, names: list[str]) -> None:
        """Run once so that onnxruntime allocates the outputs, whose shapes only a run can tell, and keep them bound."""
        for name in names:
            self._binding.bind_output(name, self._place.kind, self._place.index)
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", "-1")  # do not capture this run: its outputs are not bound yet
        self._session.run_with_iobinding(self._binding, options)
        for name, value in zip(names, self._binding.get_outputs(), strict=True):
            self._binding.bind_ortvalue_output(name, value)
            self._outputs[name] = value
            dtype = _DTYPES.get(value.data_type(), "")
            if not dtype:
                raise DataError(f"output {name} cannot be bound", why=f"{value.data_type()} has no numpy type")
            self.tensors[name] = DeviceTensor(value.data_ptr(), tuple(value.shape()), dtype)


# onnxruntime's names of types, and numpy's.
_DTYPES = {f"tensor({name})": name for name in ("float16", "int8", "int16", "int32", "int64", "bool")}
_DTYPES |= {f"tensor(u{name})": f"u{name}" for name in ("int8", "int16", "int32", "int64")}
_DTYPES |= {"tensor(float)": "float32", "tensor(double)": "float64"}


_PREFIX = re.compile(
    r"^(\[ONNXRuntimeError\] : \d+ : \w+ : )?(Load model from .*? failed:)?(This is an invalid model\. )?"
    r"(Failed to load model with )?((fatal |type )?error: ?)?",
    re.IGNORECASE,
)


_PLACE = re.compile(r"/?\S*onnxruntime/\S+:\d+ .*? was false\. ")  # the place in onnxruntime's source, and an assertion


def failure(error: Exception, shapes: Mapping[str, tuple[int, ...]]) -> TrtoptError:
    """Convert an exception of onnxruntime, for a feed of these shapes by input, into an error of trtopt.

    The result is an `OutOfMemoryError` or a `DataError`. An error that is one of trtopt already is returned unchanged.
    """
    if isinstance(error, TrtoptError):
        return error
    feed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    if exhausted(error):
        return OutOfMemoryError(
            f"memory is exhausted on {feed}", why=first_line(error), fix="Use a smaller batch, or free memory"
        )
    return DataError(f"onnxruntime cannot run the model on {feed}", why=first_line(error))


def exhausted(error: Exception) -> bool:
    """Return whether an exception of onnxruntime reports exhausted host or GPU memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(phrase in text for phrase in _EXHAUSTED)


def first_line(error: Exception) -> str:
    """Return the main line of an onnxruntime exception: the failure of CUDA, cuDNN or cuBLAS if it contains one.

    Prefixes that repeat what happened, or are for developers of onnxruntime, are left out.
    """
    if cuda_failure := re.search(r"\b(CUDA|CUDNN|CUBLAS) failure \d+: [^;\n]+", str(error)):
        return cuda_failure[0].strip()
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return _PLACE.sub("", _PREFIX.sub("", line)) or type(error).__name__
