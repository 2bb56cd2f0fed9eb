"""Kernels for the tests on a GPU, and helpers to launch them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import psutil

from trtopt.engine.cuda.device import Device, Kernel, Launch, Stream, open_device
from trtopt.engine.runner.program import Port, Shape

SOURCE = """
extern "C" __global__ void scaled(float *y, const float *x, float by, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) y[i] = by * x[i];
}
extern "C" __global__ void spin(long long cycles, int *done) {
    long long start = clock64();
    while (clock64() - start < cycles) {}
    if (threadIdx.x == 0) atomicAdd(done, 1);
}
extern "C" __global__ void reversed(int *data, int n) {
    extern __shared__ int held[];
    for (int i = threadIdx.x; i < n; i += blockDim.x) held[i] = data[i];
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) data[i] = held[n - 1 - i];
}
extern "C" __global__ void crash(int *nowhere) { *nowhere = 1; }
"""
ONE_THREAD = Launch(grid=(1,), block=(1,))


@cache
def image(package: str) -> bytes:
    with open_device(package=package) as opened:
        return opened.backend.compile(SOURCE, opened.info.compute_capability, ())


def kernel(device: Device, name: str) -> Kernel:
    return Kernel(device, image(device.info.package.split()[0]), name)


def spin_for(device: Device, milliseconds: float) -> np.int64:
    """Return the cycles for which a spinning kernel takes `milliseconds`, measured at the current clock rate."""
    stream, spin, done = device.stream(), kernel(device, "spin"), device.allocate(4)
    cycles, elapsed = np.int64(100_000_000), 0.0
    for _ in range(2):  # the first run brings the clocks up
        start = stream.record(device.event())
        stream.launch(spin, ONE_THREAD, cycles, done)
        end = stream.record(device.event())
        end.synchronize()
        elapsed = end.since(start)
    return np.int64(cycles * milliseconds / elapsed)


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


class Scaling:
    """Fake engine: a kernel computes `y` as three times `x` [1 to 64, n] after spinning for `cycles`."""

    where = "a kernel"
    weights_size = 0
    max_contexts = 0
    workspace_size = 1 << 20

    def __init__(self, device: Device, width: int, cycles: np.int64) -> None:
        self.device, self.width, self.cycles = device, width, cycles
        self.scaled, self.spin, self.done = kernel(device, "scaled"), kernel(device, "spin"), device.allocate(4)
        size = 64 * width * 4
        f32 = np.dtype(np.float32)
        self.ports = (
            Port(name="x", dtype=f32, output=False, size=size, min=(1, width), max=(64, width)),
            Port(name="y", dtype=f32, output=True, size=size),
        )

    def prepare(self, shapes: Mapping[str, Shape], addresses: Mapping[str, int], workspace: int) -> ScalingExecution:
        return ScalingExecution(self, shapes["x"], addresses)

    def close(self) -> None:
        for resource in (self.scaled, self.spin, self.done):
            resource.close()


class ScalingExecution:
    def __init__(self, program: Scaling, shape: Shape, addresses: Mapping[str, int]) -> None:
        self.program, self.shape, self.addresses = program, shape, addresses

    def outputs(self) -> Mapping[str, Shape]:
        return {"y": self.shape}

    def enqueue(self, stream: int) -> None:
        program, count = self.program, self.shape[0] * self.shape[1]
        # The runner passes the address of its stream. The `Stream` of that address can launch kernels.
        streams = [resource for resource in program.device.resources.values() if isinstance(resource, Stream)]
        on_stream = next(candidate for candidate in streams if candidate.pointer == stream)
        if program.cycles:
            on_stream.launch(program.spin, ONE_THREAD, program.cycles, program.done)
        x, y = (np.uint64(self.addresses[name]) for name in ("x", "y"))
        on_stream.launch(program.scaled, Launch(grid=(132,), block=(256,)), y, x, np.float32(3), np.int32(count))

    def close(self) -> None: ...
