"""Readings of the machine while a target runs: of the GPU through NVML, of the process through `/proc`.

Readings that are not available are absent: a GPU without a power sensor does not report zero watts.

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

_INTERVAL_SECONDS = 0.05
_READ = {"utilisation": ("gpu_utilisation", 100.0), "memory_used": ("gpu_memory", 1.0), "power": ("gpu_power", 1.0)}
"""Readings by their name in `nvml`, each with its name in `READINGS` and the factor between the two units."""


@dataclass(slots=True)
class Sampled:
    """Readings taken over a period of time."""

    taken: list[Mapping[str, float]] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Return one value per reading, by the names of `trtopt.bench.READINGS`.

        Utilization and power are means, memory is the maximum. Readings that were never available are absent.
        """
        names = {name for sample in self.taken for name in sample}
        columns = {name: [sample[name] for sample in self.taken if name in sample] for name in sorted(names)}
        return {
            name: max(values) if name == "gpu_memory" else sum(values) / len(values) for name, values in columns.items()
        }


class Gpu:
    """GPU opened in NVML, to be closed after use. `name` is empty if NVML does not report it."""

    def __init__(self, module: Any, handle: Any) -> None:
        self._module, self._handle = module, handle
        self.name = nvml.name(module, handle)

    def read(self) -> dict[str, float]:
        """Return utilization in percent, used memory in bytes and power in watts, as far as NVML supports them."""
        values = nvml.readings(self._module, self._handle, _READ)
        return {name: values[source] * scale for source, (name, scale) in _READ.items() if source in values}

    def free_memory(self) -> int:
        """Return the free memory in bytes, or 0 if NVML does not report it."""
        return int(nvml.readings(self._module, self._handle, ("memory_free",)).get("memory_free", 0))

    def close(self) -> None:
        """Shut NVML down."""
        nvml.stop(self._module)


def open_gpu(index: int = 0) -> Gpu:
    """Open the GPU that has number `index` in CUDA.

    Raises:
        MissingDependencyError: nvidia-ml-py is not installed.
        EnvironmentUnableError: the driver or the GPU is missing, or NVML and CUDA may number the GPUs differently.
    """
    module = nvml.start("NVML does not work here")
    try:
        device = visible(index, os.environ.get("CUDA_VISIBLE_DEVICES"))
        if isinstance(device, str):
            return Gpu(module, module.nvmlDeviceGetHandleByUUID(device))
        _check_order(module)
        return Gpu(module, module.nvmlDeviceGetHandleByIndex(device))
    except module.NVMLError as error:
        nvml.stop(module)
        raise EnvironmentUnableError(f"NVML has no GPU {device}", why=nvml.reason(error), fix=nvml.LOOK) from error
    except EnvironmentUnableError:
        nvml.stop(module)
        raise


def _check_order(module: Any) -> None:
    """Raise an error if NVML and CUDA may number the GPUs of this machine differently."""
    # NVML orders GPUs by PCI bus ID. CUDA puts the fastest first unless CUDA_DEVICE_ORDER says otherwise, which makes
    # no difference if all GPUs are of one model.
    handles = [module.nvmlDeviceGetHandleByIndex(index) for index in range(module.nvmlDeviceGetCount())]
    names = {nvml.name(module, handle) for handle in handles}
    if len(names) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        raise EnvironmentUnableError(
            "NVML and CUDA may number the GPUs differently",
            why=f"this machine has {', '.join(sorted(names))}, and CUDA puts the fastest first",
            fix="Set CUDA_DEVICE_ORDER=PCI_BUS_ID",
        )


def visible(index: int, variable: str | None) -> int | str:
    """Return the index or UUID in NVML of CUDA's device `index`, given the value of `CUDA_VISIBLE_DEVICES`.

    NVML lists all GPUs; CUDA lists those in the variable, in that order.
    """
    devices = [device.strip() for device in (variable or "").split(",") if device.strip()]
    if index >= len(devices):
        return index
    return int(devices[index]) if devices[index].isdigit() else devices[index]


@contextlib.contextmanager
def sampling(gpu: Gpu) -> Iterator[Sampled]:
    """Read the GPU every 50 ms in a thread until the block ends."""
    sampled, stop = Sampled(), threading.Event()

    def sample() -> None:
        while not stop.wait(_INTERVAL_SECONDS):
            sampled.taken.append(gpu.read())

    thread = threading.Thread(target=sample, name="trtopt-nvml", daemon=True)
    thread.start()
    try:
        yield sampled
    finally:
        stop.set()
        thread.join()


def resident(pid: int | str = "self") -> int:
    """Return the resident memory of a process in bytes, or 0 if it has ended or the system has no `/proc`."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]  # fields: total size, resident size, ...
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
