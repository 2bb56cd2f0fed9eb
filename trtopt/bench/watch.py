"""What every GPU of this machine does now, and the batch size that would fit into what memory is free.

What a GPU does not say (some have no power sensor) is absent, never zero.

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

_BLIND = "no GPU can be watched"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One reading: its name in Prometheus, which ends in its unit, and what it is."""

    exported: str
    text: str


METRICS = {
    "memory_used": Metric(exported="trtopt_gpu_memory_used_bytes", text="Memory in use, by all processes."),
    "memory_free": Metric(exported="trtopt_gpu_memory_free_bytes", text="Memory that is free."),
    "memory_total": Metric(exported="trtopt_gpu_memory_total_bytes", text="Memory of the GPU."),
    "utilisation": Metric(exported="trtopt_gpu_utilization_ratio", text="Share of time in which a kernel ran, 0 to 1."),
    "memory_utilisation": Metric(
        exported="trtopt_gpu_memory_utilization_ratio",
        text="Share of time in which memory was read or written, 0 to 1.",
    ),
    "temperature": Metric(exported="trtopt_gpu_temperature_celsius", text="Temperature of the GPU."),
    "power": Metric(exported="trtopt_gpu_power_watts", text="Power that the board draws."),
    "power_limit": Metric(exported="trtopt_gpu_power_limit_watts", text="Power it is held to."),
    "sm_clock": Metric(exported="trtopt_gpu_sm_clock_hertz", text="Clock of the multiprocessors."),
    "memory_clock": Metric(exported="trtopt_gpu_memory_clock_hertz", text="Clock of the memory."),
}
"""The readings by name, in reading order and in base units, as Prometheus wants them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """A GPU by NVML's number, and its readings by the names of `METRICS`, in their units."""

    index: int
    name: str
    uuid: str
    readings: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The batch size that would fit into a GPU's free memory now (0: none), and a sentence on why that one."""

    gpu: int
    batch: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """All GPUs at one moment, and what fits into each; no `fits` without a run directory."""

    gpus: tuple[GpuState, ...]
    fits: tuple[Fit, ...]


@contextlib.contextmanager
def opened() -> Iterator[Any]:
    """Open NVML, and close it at the end.

    Raises:
        MissingDependencyError: nvidia-ml-py is not installed.
        EnvironmentUnableError: there is no driver, it does not fit nvidia-ml-py, or it lists no GPU.
    """
    module = nvml.start(_BLIND)
    try:
        if not read(module):
            raise EnvironmentUnableError(_BLIND, why="the NVIDIA driver lists none", fix=nvml.LOOK)
        yield module
    finally:
        nvml.stop(module)


def read(module: Any) -> tuple[GpuState, ...]:
    """Read every GPU, with NVML as `opened` gives it. A GPU that no longer answers has no readings.

    Raises:
        EnvironmentUnableError: the driver no longer answers.
    """
    try:
        count = int(module.nvmlDeviceGetCount())
    except module.NVMLError as error:
        raise EnvironmentUnableError(_BLIND, why=nvml.reason(error), fix=nvml.LOOK) from error
    return tuple(_state(module, index) for index in range(count))


def _state(module: Any, index: int) -> GpuState:
    handle = nvml.ask(module, lambda: module.nvmlDeviceGetHandleByIndex(index))
    if handle is None:  # it fell off the bus
        return GpuState(index=index, name="does not answer", uuid="", readings={})
    return GpuState(
        index=index,
        name=nvml.name(module, handle),
        uuid=nvml.text(nvml.ask(module, lambda: module.nvmlDeviceGetUUID(handle)) or ""),
        readings=nvml.readings(module, handle, METRICS),
    )


def measured_limit(run_dir: Path) -> BatchLimit:
    """The memory model that `trtopt bench --max-batch` left in a run directory.

    Raises:
        StoreError: it left none there, not one of a GPU, or it cannot be read.
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
        raise StoreError(f"{path} is no benchmark of this trtopt", why=str(error), fix=fix) from error
    if benchmark.limit is None:
        raise StoreError(f"{path} says nothing of memory", why="it was measured without --max-batch", fix=fix)
    if benchmark.limit.device == "cpu":
        raise StoreError(f"{path} says nothing of a GPU's memory", why="it was measured on the CPU", fix=fix)
    return benchmark.limit


def fits(limit: BatchLimit, gpus: tuple[GpuState, ...]) -> tuple[Fit, ...]:
    """The batch size that would fit into what is free now, on each GPU that says how much is free: in a process that
    uses the GPU already, for CUDA itself takes some hundred MiB more of it for each process.

    What was held by memory when it was measured may be larger now. What was held by something else (the latency, the
    engine's profile, the search's end) is never larger than measured.
    """
    return tuple(_fit(limit, gpu.index, gpu.readings["memory_free"]) for gpu in gpus if "memory_free" in gpu.readings)


def _fit(limit: BatchLimit, gpu: int, free: float) -> Fit:
    room = free - limit.bytes_fixed
    if limit.bytes_per_sample > 0:
        by_memory = max(math.floor(room / limit.bytes_per_sample), 0)
    else:  # one measured batch tells nothing of others
        by_memory = limit.batch if room > 0 else 0
    if by_memory > limit.batch and limit.limited_by != "memory":
        return Fit(gpu=gpu, batch=limit.batch, why=f"there is memory for {by_memory:,}, but {limit.why}")
    takes = f"{limit.bytes_fixed / 2**20:,.0f} MiB and {limit.bytes_per_sample / 2**20:,.2f} MiB a sample"
    takes += " in a process that uses the GPU already"  # what CUDA itself takes was there before the model
    measured = f"; measured up to {limit.batch}" if by_memory > limit.batch else ""
    why = f"{free / 2**20:,.0f} MiB are free, {Path(limit.target).name} takes {takes}{measured}"
    return Fit(gpu=gpu, batch=by_memory, why=why)
