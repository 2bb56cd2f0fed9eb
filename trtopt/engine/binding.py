"""One feed of an onnxruntime session, bound to buffers that stay where the model runs: a run copies nothing.

The same code on the CPU and on the GPU: what `trtopt bench` times, and what calibration on the GPU reads its tensors
from.

Touches: memory of the machine or of the GPU, released with the objects.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

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
"""What onnxruntime's arena, CUDA, cuBLAS, cuDNN and C++ say, in lower case, when memory is exhausted."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a session keeps its tensors: `kind` is `cpu` or `cuda`, `index` the number of the device."""

    kind: str
    index: int = 0


@dataclass(frozen=True, slots=True)
class DeviceTensor:
    """A dense tensor in row-major order: its address on the device, its shape, and numpy's name of its type."""

    pointer: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class BoundRun:
    """A session with its inputs and outputs at fixed addresses, for feeds of the same shapes.

    `tensors` are the inputs and outputs by name; they keep their addresses as long as this object lives, save inputs
    that `read_from` moves. `OrtRunner.bind` makes it. One thread at a time.
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
        if graph_id:
            self._options.add_run_config_entry("gpu_graph_id", str(graph_id))

    @property
    def input_bytes(self) -> int:
        """Size of all inputs together."""
        return sum(self.tensors[name].nbytes for name in self._shapes)

    @property
    def output_bytes(self) -> int:
        """Size of all outputs together."""
        return sum(self.tensors[name].nbytes for name in self._outputs)

    def run(self) -> None:
        """Run once over what the input buffers hold, and return when the outputs are there.

        Raises:
            OutOfMemoryError: the memory is exhausted.
            DataError: onnxruntime fails, or an output has another shape than at the binding.
        """
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:
            raise failure(error, self._shapes) from error

    def copy_in(self, feed: Mapping[str, Array]) -> None:
        """Copy a feed of the bound shapes and types into the input buffers.

        Raises:
            DataError: an input is missing, is bound to memory of the caller, or has another shape or type.
        """
        for name, buffer in self._inputs.items():
            array, bound = feed.get(name), self.tensors[name]
            if array is None:
                raise DataError(f"no data for input {name}", why=f"the sample has {', '.join(feed) or 'none'}")
            if buffer is None:
                raise DataError(f"input {name} cannot be copied into", why="it is bound to memory of the caller")
            if array.shape != bound.shape or array.dtype.name != bound.dtype:
                raise DataError(
                    f"input {name} is {array.dtype} {list(array.shape)}",
                    why=f"its buffer holds {bound.dtype} {list(bound.shape)}",
                    fix="Bind the model again for another shape",
                )
            buffer.update_inplace(array)

    def copy_out(self) -> dict[str, Array]:
        """Return copies of the outputs on the host, by name."""
        # On the CPU onnxruntime gives a view of the buffer, which the next run would write into.
        is_view = self._place.kind == "cpu"
        return {name: np.array(value.numpy()) if is_view else value.numpy() for name, value in self._outputs.items()}

    def read_from(self, tensors: Mapping[str, DeviceTensor]) -> None:
        """Take inputs from other memory of the same device from now on, which the caller keeps alive.

        Not with CUDA graphs, whose addresses are fixed when they are captured.

        Raises:
            DataError: a tensor is no input, or has another shape or type than at the binding.
        """
        for name, tensor in tensors.items():
            bound = self.tensors[name] if name in self._inputs else None
            if bound is None or (bound.shape, bound.dtype) != (tensor.shape, tensor.dtype):
                raise DataError(
                    f"input {name} cannot be read from {tensor.dtype} {list(tensor.shape)}",
                    why=f"it is bound as {bound.dtype} {list(bound.shape)}" if bound else "there is no such input",
                )
            self._read(name, tensor)

    def _bind_inputs(self, ort: Any, feed: Mapping[str, Array | DeviceTensor]) -> None:
        for name, value in feed.items():
            if isinstance(value, DeviceTensor):
                self._read(name, value)
                continue
            # On the CPU the buffer would be the array itself, which is the caller's.
            array = np.array(value, order="C") if self._place.kind == "cpu" else np.ascontiguousarray(value)
            buffer = ort.OrtValue.ortvalue_from_numpy(array, self._place.kind, self._place.index)
            self._binding.bind_ortvalue_input(name, buffer)
            self._inputs[name] = buffer
            self.tensors[name] = DeviceTensor(buffer.data_ptr(), array.shape, array.dtype.name)

    def _read(self, name: str, tensor: DeviceTensor) -> None:
        self._binding.bind_input(
            name, self._place.kind, self._place.index, np.dtype(tensor.dtype).type, tensor.shape, tensor.pointer
        )
        self._inputs[name] = None
        self.tensors[name] = tensor

    def _bind_outputs(self, ort: Any, names: list[str]) -> None:
        """Let one run make the outputs, and keep them: only a run can tell their shapes."""
        for name in names:
            self._binding.bind_output(name, self._place.kind, self._place.index)
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", "-1")  # a graph captured now would write to these addresses only
        self._session.run_with_iobinding(self._binding, options)
        for name, value in zip(names, self._binding.get_outputs(), strict=True):
            self._binding.bind_ortvalue_output(name, value)
            self._outputs[name] = value
            dtype = _DTYPES.get(value.data_type(), "")
            if not dtype:
                raise DataError(f"output {name} cannot be bound", why=f"{value.data_type()} has no numpy type")
            self.tensors[name] = DeviceTensor(value.data_ptr(), tuple(value.shape()), dtype)


_DTYPES = {f"tensor({name})": name for name in ("float16", "int8", "int16", "int32", "int64", "bool")}
_DTYPES |= {f"tensor(u{name})": f"u{name}" for name in ("int8", "int16", "int32", "int64")}
_DTYPES |= {"tensor(float)": "float32", "tensor(double)": "float64"}


def failure(error: Exception, shapes: Mapping[str, tuple[int, ...]]) -> TrtoptError:
    """What onnxruntime's error on a feed of these shapes means: memory exhausted, or data that does not fit."""
    if isinstance(error, TrtoptError):
        return error
    given = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    if exhausted(error):
        return OutOfMemoryError(
            f"memory is exhausted on {given}", why=first_line(error), fix="Use a smaller batch, or free memory"
        )
    return DataError(f"onnxruntime cannot run the model on {given}", why=first_line(error))


def exhausted(error: Exception) -> bool:
    """Whether an error of onnxruntime says that memory is exhausted, of the machine or of the GPU."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(words in said for words in _EXHAUSTED)


def first_line(error: Exception) -> str:
    """What an error of onnxruntime says, in one line: the failure of CUDA, cuDNN or cuBLAS in it, if there is one."""
    if failed := re.search(r"\b(CUDA|CUDNN|CUBLAS) failure \d+: [^;\n]+", str(error)):
        return failed[0].strip()
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
