"""NVML, as nvidia-ml-py gives it: what a GPU says of itself, in base units.

What a GPU does not say (some have no power sensor) is absent, never zero.

Touches: NVML.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import Any

from trtopt.errors import EnvironmentUnableError
from trtopt.requires import require

LOOK = "Look at nvidia-smi"


def start(what: str) -> Any:
    """Return NVML's module, ready to be asked; `stop` it at the end. `what` is what fails without it, in words.

    Raises:
        MissingDependencyError: nvidia-ml-py is not installed.
        EnvironmentUnableError: there is no driver, or it does not fit nvidia-ml-py.
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
    """Let NVML go."""
    with contextlib.suppress(module.NVMLError):
        module.nvmlShutdown()


def reason(error: Exception) -> str:
    """What an error of NVML says, to stand within a sentence."""
    return str(error).rstrip(".")


def ask(module: Any, source: Callable[[], Any]) -> Any:
    """What a GPU answers, or None where it does not."""
    try:
        return source()
    except module.NVMLError:
        return None


def name(module: Any, handle: Any) -> str:
    """The name of a GPU; empty where it does not say."""
    return text(ask(module, lambda: module.nvmlDeviceGetName(handle)) or "")


def text(value: bytes | str) -> str:
    """A text of NVML's, which is bytes before nvidia-ml-py 12."""
    return value.decode() if isinstance(value, bytes) else value


def readings(module: Any, handle: Any, wanted: Iterable[str]) -> dict[str, float]:
    """Those of `memory_used`, `memory_free`, `memory_total` (bytes), `utilisation`, `memory_utilisation` (0 to 1),
    `temperature` (degrees Celsius), `power`, `power_limit` (watts), `sm_clock` and `memory_clock` (hertz) that are
    wanted and that the GPU says.
    """
    memory = functools.cache(lambda: module.nvmlDeviceGetMemoryInfo(handle))  # absent where it is the host's, too
    rates = functools.cache(lambda: module.nvmlDeviceGetUtilizationRates(handle))
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
    }
    found = {each: ask(module, sources[each]) for each in wanted}
    return {each: float(value) for each, value in found.items() if value is not None}
