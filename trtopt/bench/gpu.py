"""What the machine says while a target runs: the GPU through NVML, the process through `/proc`.

What cannot be read is absent from the readings: a GPU without a power sensor draws no zero watts.

Touches: NVML (nvidia-ml-py) when a GPU is asked for; `/proc/self`; a thread while it samples.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtopt.bench import nvml
from trtopt.errors import EnvironmentUnableError

_EVERY = 0.05
_READ = {"utilisation": ("gpu_utilisation", 100.0), "memory_used": ("gpu_memory", 1.0), "power": ("gpu_power", 1.0)}
"""NVML's readings that are of interest, each with its name here and how many of its units are one of NVML's."""


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

    def __init__(self, module: Any, handle: Any) -> None:
        self._module, self._handle = module, handle
        self.name = nvml.name(module, handle)

    def read(self) -> dict[str, float]:
        """Utilisation in percent, memory in use in bytes, power in watts; what NVML cannot say is absent."""
        found = nvml.readings(self._module, self._handle, _READ)
        return {name: found[source] * scale for source, (name, scale) in _READ.items() if source in found}

    def close(self) -> None:
        """Let NVML go."""
        nvml.stop(self._module)


def open_gpu(index: int = 0) -> Gpu:
    """Open the GPU that CUDA calls `index`.

    Raises:
        MissingDependencyError: nvidia-ml-py is not installed.
        EnvironmentUnableError: NVML finds no driver, or not that GPU, or which one it is cannot be known.
    """
    module = nvml.start("NVML does not work here")
    try:
        chosen = visible(index, os.environ.get("CUDA_VISIBLE_DEVICES"))
        if isinstance(chosen, str):
            return Gpu(module, module.nvmlDeviceGetHandleByUUID(chosen))
        _check_order(module)
        return Gpu(module, module.nvmlDeviceGetHandleByIndex(chosen))
    except module.NVMLError as error:
        nvml.stop(module)
        raise EnvironmentUnableError(f"NVML has no GPU {chosen}", why=nvml.reason(error), fix=nvml.LOOK) from error
    except EnvironmentUnableError:
        nvml.stop(module)
        raise


def _check_order(module: Any) -> None:
    """Refuse to guess which GPU is meant: NVML counts them by their place on the bus, CUDA the fastest first."""
    handles = [module.nvmlDeviceGetHandleByIndex(place) for place in range(module.nvmlDeviceGetCount())]
    names = {nvml.name(module, handle) for handle in handles}
    if len(names) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        raise EnvironmentUnableError(
            "NVML and CUDA may number the GPUs differently",
            why=f"they are {', '.join(sorted(names))}, and CUDA puts the fastest first",
            fix="Set CUDA_DEVICE_ORDER=PCI_BUS_ID",
        )


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
