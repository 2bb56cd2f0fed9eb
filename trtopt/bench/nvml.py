"""Readings of a GPU in base units, through NVML (package nvidia-ml-py).

Readings that a GPU does not support are absent, never zero; some GPUs have no power sensor.

Touches: NVML.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import Any

from trtopt.errors import EnvironmentUnableError
from trtopt.requires import require

LOOK = "Check the driver with nvidia-smi"


def start(what: str) -> Any:
    """Initialize NVML and return its module. The caller must `stop` it.

    Args:
        what: the error message if NVML does not start, such as "no GPU can be watched".

    Raises:
        MissingDependencyError: nvidia-ml-py is not installed.
        EnvironmentUnableError: the driver is missing, or incompatible with nvidia-ml-py.
    """
    module = require("pynvml")
    try:
        module.nvmlInit()
    except module.NVMLError as error:
        absent = isinstance(error, (module.NVMLError_LibraryNotFound, module.NVMLError_DriverNotLoaded))
        fix = "Run on a machine with an NVIDIA GPU and its driver" if absent else LOOK
        raise EnvironmentUnableError(what, why=reason(error), fix=fix) from error
    return module


def stop(module: Any) -> None:
    """Shut NVML down. Errors are ignored: nothing can be done about them."""
    with contextlib.suppress(module.NVMLError):
        module.nvmlShutdown()


def reason(error: Exception) -> str:
    """Return the text of an NVML error, without its final period."""
    return str(error).rstrip(".")


def ask(module: Any, source: Callable[[], Any]) -> Any:
    """Return the result of an NVML query, or None if the GPU does not support it or no longer answers."""
    try:
        return source()
    except module.NVMLError:
        return None


def name(module: Any, handle: Any) -> str:
    """Return the name of a GPU, or "" if NVML does not report it."""
    return text(ask(module, lambda: module.nvmlDeviceGetName(handle)) or "")


def text(value: bytes | str) -> str:
    """Return a text of NVML as `str`; nvidia-ml-py before version 12 returns `bytes`."""
    return value.decode() if isinstance(value, bytes) else value


def readings(module: Any, handle: Any, wanted: Iterable[str]) -> dict[str, float]:
    """Return the wanted readings that the GPU supports.

    Args:
        module: NVML's module, started.
        handle: NVML's handle of the GPU.
        wanted: names among `memory_used`, `memory_free`, `memory_total` (bytes), `utilisation`, `memory_utilisation`
            (0 to 1), `temperature` (degrees Celsius), `power`, `power_limit` (watts), `sm_clock`, `memory_clock`
            (hertz), `pcie_in` and `pcie_out` (bytes per second; each takes NVML 20 ms to measure).
    """
    # One query answers several readings. GPUs that share the host's memory, such as GB10, do not support the first.
    memory = functools.cache(lambda: module.nvmlDeviceGetMemoryInfo(handle))
    rates = functools.cache(lambda: module.nvmlDeviceGetUtilizationRates(handle))
    # NVML reports percent, milliwatts, megahertz and kilobytes per second.
    sources: dict[str, Callable[[], float]] = {
        "memory_used": lambda: memory().used,
        "memory_free": lambda: memory().free,
        "memory_total": lambda: memory().total,
        "utilisation": lambda: rates().gpu / 100,
        "memory_utilisation": lambda: rates().memory / 100,
        "temperature": lambda: module.nvmlDeviceGetTemperature(handle, module.NVML_TEMPERATURE_GPU),
        "power": lambda: module.nvmlDeviceGetPowerUsage(handle) / 1e3,
        "power_limit": lambda: module.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
        "sm_clock": lambda: module.nvmlDeviceGetClockInfo(handle, module.NVML_CLOCK_SM) * 1e6,
        "memory_clock": lambda: module.nvmlDeviceGetClockInfo(handle, module.NVML_CLOCK_MEM) * 1e6,
        "pcie_in": lambda: module.nvmlDeviceGetPcieThroughput(handle, module.NVML_PCIE_UTIL_RX_BYTES) * 1e3,
        "pcie_out": lambda: module.nvmlDeviceGetPcieThroughput(handle, module.NVML_PCIE_UTIL_TX_BYTES) * 1e3,
    }
    values = {name: ask(module, sources[name]) for name in wanted}
    return {name: float(value) for name, value in values.items() if value is not None}
