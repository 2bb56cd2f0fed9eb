"""Current readings of every GPU of this machine, and the batch size that would fit into its free memory.

Readings that a GPU does not support are absent, never zero; some GPUs have no power sensor.

Touches: NVML (nvidia-ml-py); reads the `benchmark.json` of a run directory.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtopt.bench import nvml
from trtopt.codec import decode
from trtopt.errors import EnvironmentUnableError, StoreError
from trtopt.types import BatchLimit, Benchmark

_NO_GPU = "no GPU can be watched"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """Kind of reading: its name in Prometheus, which ends in the unit, and its description."""

    exported: str
    text: str


METRICS = {
    "memory_used": Metric(exported="trtopt_gpu_memory_used_bytes", text="Memory in use, by all processes."),
    "memory_free": Metric(exported="trtopt_gpu_memory_free_bytes", text="Free memory."),
    "memory_total": Metric(exported="trtopt_gpu_memory_total_bytes", text="Memory of the GPU."),
    "utilisation": Metric(exported="trtopt_gpu_utilization_ratio", text="Share of time in which a kernel ran, 0 to 1."),
    "memory_utilisation": Metric(
        exported="trtopt_gpu_memory_utilization_ratio",
        text="Share of time in which memory was read or written, 0 to 1.",
    ),
    "temperature": Metric(exported="trtopt_gpu_temperature_celsius", text="Temperature of the GPU."),
    "power": Metric(exported="trtopt_gpu_power_watts", text="Power drawn by the board."),
    "power_limit": Metric(exported="trtopt_gpu_power_limit_watts", text="Power limit of the board."),
    "sm_clock": Metric(exported="trtopt_gpu_sm_clock_hertz", text="Clock of the multiprocessors."),
    "memory_clock": Metric(exported="trtopt_gpu_memory_clock_hertz", text="Clock of the memory."),
    "pcie_in": Metric(
        exported="trtopt_gpu_pcie_received_bytes_per_second", text="PCIe traffic to the GPU, over the last 20 ms."
    ),
    "pcie_out": Metric(
        exported="trtopt_gpu_pcie_sent_bytes_per_second", text="PCIe traffic from the GPU, over the last 20 ms."
    ),
}
"""Readings by name, in the order of the tables and in base units, as is the convention of Prometheus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """GPU with its number in NVML and its readings, by the names of `METRICS`."""

    index: int
    name: str
    uuid: str
    readings: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Batch size that would fit into the free memory of a GPU (0 if none), and a sentence that gives the reason."""

    gpu: int
    batch: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Snapshot of all GPUs, and the batch sizes that fit into each; `fits` is empty without a run directory."""

    gpus: tuple[GpuState, ...]
    fits: tuple[Fit, ...]


@contextlib.contextmanager
def opened() -> Iterator[Any]:
    """Yield NVML's module, started, and shut it down at the end of the block.

    Raises:
        MissingDependencyError: nvidia-ml-py is not installed.
        EnvironmentUnableError: the driver is missing or incompatible with nvidia-ml-py, or lists no GPU.
    """
    module = nvml.start(_NO_GPU)
    try:
        if not read(module):
            raise EnvironmentUnableError(_NO_GPU, why="the NVIDIA driver lists none", fix=nvml.LOOK)
        yield module
    finally:
        nvml.stop(module)


def read(module: Any) -> tuple[GpuState, ...]:
    """Read every GPU. A GPU that no longer answers has no readings.

    Args:
        module: NVML's module, from `opened`.

    Raises:
        EnvironmentUnableError: the driver no longer answers.
    """
    try:
        count = int(module.nvmlDeviceGetCount())
    except module.NVMLError as error:
        raise EnvironmentUnableError(_NO_GPU, why=nvml.reason(error), fix=nvml.LOOK) from error
    return tuple(_state(module, index) for index in range(count))


def _state(module: Any, index: int) -> GpuState:
    handle = nvml.ask(module, lambda: module.nvmlDeviceGetHandleByIndex(index))
    if handle is None:  # the GPU is lost; the driver still counts it
        return GpuState(index=index, name="does not answer", uuid="", readings={})
    return GpuState(
        index=index,
        name=nvml.name(module, handle),
        uuid=nvml.text(nvml.ask(module, lambda: module.nvmlDeviceGetUUID(handle)) or ""),
        readings=nvml.readings(module, handle, METRICS),
    )


def measured_limit(run_dir: Path) -> BatchLimit:
    """Return the memory measurement that `trtopt bench --max-batch` stored in a run directory.

    Raises:
        StoreError: there is none, it was made on the CPU, or it cannot be read.
    """
    fix = f"Measure it: trtopt bench {run_dir} --max-batch --device cuda"
    path = run_dir / "benchmark.json"
    try:
        benchmark = decode(Benchmark, json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise StoreError(f"{run_dir} has no benchmark.json", why="its memory was never measured", fix=fix) from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read", why=error.strerror or str(error), fix=fix) from error
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is not a benchmark of this version of trtopt", why=str(error), fix=fix) from error
    if benchmark.limit is None:
        raise StoreError(f"{path} has no memory measurement", why="it was measured without --max-batch", fix=fix)
    if benchmark.limit.device == "cpu":
        raise StoreError(f"{path} has no GPU memory measurement", why="it was measured on the CPU", fix=fix)
    return benchmark.limit


def fits(limit: BatchLimit, gpus: tuple[GpuState, ...]) -> tuple[Fit, ...]:
    """Return the batch size that would fit into the free memory of each GPU that reports it.

    This holds for a process that already uses the GPU: CUDA itself takes a few hundred MiB for each new process.

    A batch size that was limited by memory when it was measured may be larger now. One that was limited otherwise (by
    the latency, the engine's profile or the end of the search) is never larger than measured.
    """
    return tuple(_fit(limit, gpu.index, gpu.readings["memory_free"]) for gpu in gpus if "memory_free" in gpu.readings)


def _fit(limit: BatchLimit, gpu: int, free: float) -> Fit:
    for_samples = free - limit.bytes_fixed
    if limit.bytes_per_sample > 0:
        by_memory = max(math.floor(for_samples / limit.bytes_per_sample), 0)
    else:  # the memory per sample is unknown, as only one batch size was measured
        by_memory = limit.batch if for_samples > 0 else 0
    if by_memory > limit.batch and limit.limited_by != "memory":
        return Fit(gpu=gpu, batch=limit.batch, why=f"there is memory for {by_memory:,}, but {limit.why}")
    needs = f"{limit.bytes_fixed / 2**20:,.0f} MiB plus {limit.bytes_per_sample / 2**20:,.2f} MiB per sample"
    # The measurement started after CUDA had taken its own memory, so that is not included.
    needs += " in a process that already uses the GPU"
    measured = f"; measured up to batch {limit.batch}" if by_memory > limit.batch else ""
    why = f"{free / 2**20:,.0f} MiB are free, {Path(limit.target).name} needs {needs}{measured}"
    return Fit(gpu=gpu, batch=by_memory, why=why)
