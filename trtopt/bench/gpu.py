"""What the machine says while a target runs: the GPU through NVML, the process through `/proc`.

What cannot be read is absent from the readings: a GPU without a power sensor draws no zero watts.

Touches: NVML (nvidia-ml-py) when a GPU is asked for; `/proc/self`; a thread while it samples.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtopt.errors import EnvironmentUnableError
from trtopt.requires import require

_EVERY = 0.05


@dataclass(slots=True)
class Sampled:
    """The readings of a while: GPU utilisation and power as means, memory as the most that was seen."""

    taken: list[Mapping[str, float]] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """The readings, by the names of `trtopt.bench.READINGS`; those that no sample had are absent."""
        names = {name for sample in self.taken for name in sample}
        columns = {name: [sample[name] for sample in self.taken if name in sample] for name in sorted(names)}
        return {
            name: max(values) if name == "gpu_memory" else sum(values) / len(values) for name, values in columns.items()
        }


class Gpu:
    """A GPU as NVML sees it; `name` is empty where it does not say. Close it when done."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self.name = ""
        with contextlib.suppress(nvml.NVMLError):
            name = nvml.nvmlDeviceGetName(handle)
            self.name = name.decode() if isinstance(name, bytes) else name  # bytes before nvidia-ml-py 12

    def read(self) -> dict[str, float]:
        """Utilisation in percent, memory in use in bytes, power in watts; what NVML cannot say is absent."""
        nvml, handle = self._nvml, self._handle
        sources: dict[str, Callable[[], float]] = {
            "gpu_utilisation": lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            "gpu_memory": lambda: float(nvml.nvmlDeviceGetMemoryInfo(handle).used),
            "gpu_power": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        }
        found = {}
        for name, source in sources.items():
            with contextlib.suppress(nvml.NVMLError):
                found[name] = source()
        return found

    def close(self) -> None:
        """Let NVML go."""
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()


def open_gpu(index: int = 0) -> Gpu:
    """Open the GPU that CUDA calls `index`.

    Raises:
        MissingDependencyError: nvidia-ml-py is not installed.
        EnvironmentUnableError: NVML finds no driver, or not that GPU.
    """
    nvml = require("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise EnvironmentUnableError("NVML does not work here", why=str(error)) from error
    chosen = visible(index, os.environ.get("CUDA_VISIBLE_DEVICES"))
    try:
        by_uuid = isinstance(chosen, str)
        handle = nvml.nvmlDeviceGetHandleByUUID(chosen) if by_uuid else nvml.nvmlDeviceGetHandleByIndex(chosen)
    except nvml.NVMLError as error:
        nvml.nvmlShutdown()
        raise EnvironmentUnableError(f"NVML has no GPU {chosen}", why=str(error)) from error
    return Gpu(nvml, handle)


def visible(index: int, variable: str | None) -> int | str:
    """NVML's index or UUID of CUDA's device `index`, under the `CUDA_VISIBLE_DEVICES` that is set.

    NVML counts all GPUs, CUDA those that the variable names, in its order.
    """
    named = [name.strip() for name in (variable or "").split(",") if name.strip()]
    if index >= len(named):
        return index
    return int(named[index]) if named[index].isdigit() else named[index]


@contextlib.contextmanager
def sampling(gpu: Gpu) -> Iterator[Sampled]:
    """Read the GPU every 50 ms, from a thread, until the block ends."""
    sampled, stop = Sampled(), threading.Event()

    def sample() -> None:
        while not stop.wait(_EVERY):
            sampled.taken.append(gpu.read())

    thread = threading.Thread(target=sample, name="trtopt-nvml", daemon=True)
    thread.start()
    try:
        yield sampled
    finally:
        stop.set()
        thread.join()


def resident(pid: int | str = "self") -> int:
    """Resident memory of a process in bytes; 0 where the system has no `/proc`, or the process is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
