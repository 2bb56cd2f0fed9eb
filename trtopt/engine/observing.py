"""Calibration's observation where the model runs: on the CPU as it is, on a GPU without its tensors leaving it.

Touches: the memory of the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trtopt.calibrate.gpu_observe import OnGpu, observe_on_gpu
from trtopt.calibrate.histogram import Histogram
from trtopt.calibrate.observe import observe
from trtopt.data.dataset import Dataset
from trtopt.engine.cuda import Device, Kernel, Launch, open_device
from trtopt.engine.onnxruntime import OrtRunner
from trtopt.errors import EnvironmentUnableError, MissingDependencyError, OutOfMemoryError
from trtopt.events import Emit, Warned


class DeviceCounting:
    """A device as `trtopt.calibrate.gpu_histogram` asks for it; what it allocates is released with the device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._stream = device.stream()

    def allocate(self, size: int) -> int:
        """Address of `size` bytes of device memory, all zero."""
        pointer = self._device.allocate(size).pointer
        self.clear(pointer, size)
        return pointer

    def clear(self, pointer: int, size: int) -> None:
        """Set `size` bytes of device memory to zero."""
        self._stream.fill(pointer, size)

    def upload(self, pointer: int, array: npt.NDArray[Any]) -> None:
        """Copy an array into device memory."""
        self._stream.to_device(pointer, array)

    def download(self, array: npt.NDArray[Any], pointer: int) -> None:
        """Copy device memory into an array, when all that was launched before is done."""
        self._stream.to_host(array, pointer)
        self._stream.synchronize()

    def compile(self, source: str, name: str) -> Kernel:
        """Compile CUDA C++ and return the kernel of that name."""
        return self._device.compile(source, name, ("--std=c++17",))

    def launch(self, kernel: Kernel, blocks: int, threads: int, *arguments: np.generic) -> None:
        """Run a kernel on one-dimensional blocks, after all that was launched before."""
        self._stream.launch(kernel, Launch(grid=(blocks,), block=(threads,)), *arguments)


def observe_where_it_runs(
    runner: OrtRunner, tensors: Sequence[str], dataset: Dataset, *, stage: str, emit: Emit
) -> dict[str, Histogram]:
    """As `trtopt.calibrate.observe.observe`, for a session over a `tap`ped copy. On a GPU, samples run in batches.

    Without cuda-python or pycuda, or a compiler for kernels, a GPU's tensors are counted on the host, with a warning.
    """
    if runner.place.kind == "cuda":
        try:
            with open_device(runner.place.index) as device:
                model = OnGpu(bind=runner.bind, gpu=DeviceCounting(device))
                return observe_on_gpu(model, tensors, dataset, stage=stage, emit=emit)
        except OutOfMemoryError:
            raise
        except (EnvironmentUnableError, MissingDependencyError) as error:
            emit(Warned(f"tensors travel to the host to be counted, which takes much longer: {error}"))
    return observe(runner.run, tensors, dataset, stage=stage, emit=emit, callers=runner.callers)
