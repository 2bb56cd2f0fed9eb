"""Observation of tensors for calibration on the device where the model runs; GPU tensors are not copied to the host.

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
from trtopt.engine.cuda.device import Device, Kernel, Launch, open_device
from trtopt.engine.onnxruntime import OrtRunner
from trtopt.errors import EnvironmentUnableError, MissingDependencyError, OutOfMemoryError
from trtopt.events import Emit, Warned


class DeviceCounting:
    """Device operations that `trtopt.calibrate.gpu_histogram` needs. Allocations are released with the device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._stream = device.stream()

    def allocate(self, size: int) -> int:
        """Allocate `size` bytes of device memory, set them to zero, and return the address."""
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
        """Copy device memory into an array after all earlier work is complete, and wait for the copy."""
        self._stream.to_host(array, pointer)
        self._stream.synchronize()

    def compile(self, source: str, name: str) -> Kernel:
        """Compile CUDA C++ and return the kernel `name`."""
        return self._device.compile(source, name, ("--std=c++17",))

    def launch(self, kernel: Kernel, blocks: int, threads: int, *arguments: np.generic) -> None:
        """Launch a kernel on a one-dimensional grid, after all earlier work."""
        self._stream.launch(kernel, Launch(grid=(blocks,), block=(threads,)), *arguments)


def observe_where_it_runs(
    runner: OrtRunner, tensors: Sequence[str], dataset: Dataset, *, stage: str, emit: Emit
) -> dict[str, Histogram]:
    """Return the histogram of each tensor over a dataset, like `trtopt.calibrate.observe.observe`.

    On a GPU, samples run in batches and histograms are built on the device. Without a CUDA package or a compiler for
    kernels they are built on the host, with a warning.

    Args:
        runner: session of a model whose `tensors` are outputs (see `trtopt.calibrate.observe.tap`).
        tensors: names of the tensors to observe.
        dataset: the calibration samples.
        stage: name of the stage in progress events.
        emit: receives progress and warnings.
    """
    if runner.place.kind == "cuda":
        try:
            with open_device(runner.place.index) as device:
                model = OnGpu(bind=runner.bind, gpu=DeviceCounting(device))
                return observe_on_gpu(model, tensors, dataset, stage=stage, emit=emit)
        except OutOfMemoryError:  # a subclass of EnvironmentUnableError; building histograms on the host would not help
            raise
        except (EnvironmentUnableError, MissingDependencyError) as error:
            emit(Warned(f"histograms are built on the host, which is much slower than on the GPU: {error}"))
    return observe(runner.run, tensors, dataset, stage=stage, emit=emit, callers=runner.callers)
