"""The NVIDIA driver and the GPUs of this machine.

Touches: the driver, through NVML; /proc.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_KERNEL_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """GPU listed by the driver. `memory_bytes` is its total memory, or 0 if it shares the memory of the host."""

    name: str
    compute_capability: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """NVIDIA driver: its version, the newest CUDA version that it supports, and its GPUs.

    If nothing is known about it, `absent` gives the reason.
    """

    version: str = ""
    cuda: str = ""
    gpus: tuple[Gpu, ...] = ()
    absent: str = ""


def read_driver() -> Driver:
    """Return the NVIDIA driver and its GPUs."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ModuleNotFoundError:
        if _has_driver():
            return Driver(absent="the NVIDIA driver cannot be queried: nvidia-ml-py is not installed")
        return Driver(absent="no NVIDIA driver")
    except Exception as error:  # noqa: BLE001 - a broken installation can raise anything, and is reported
        return Driver(absent=f"nvidia-ml-py cannot be imported: {error}")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Driver(absent=f"no NVIDIA driver ({error})")
    try:
        cuda = nvml.nvmlSystemGetCudaDriverVersion()
        return Driver(
            version=_text(nvml.nvmlSystemGetDriverVersion()),
            cuda=f"{cuda // 1000}.{cuda % 1000 // 10}",
            gpus=tuple(_gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(nvml.nvmlDeviceGetCount())),
        )
    except nvml.NVMLError as error:
        return Driver(absent=f"the NVIDIA driver does not answer ({error})")
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def has_gpu() -> bool:
    """Return whether this machine has, or may have, an NVIDIA GPU: without nvidia-ml-py only the driver can be seen."""
    return bool(read_driver().gpus) or _has_driver()


def _has_driver() -> bool:
    return _KERNEL_DRIVER.exists() or shutil.which("nvidia-smi") is not None


def _gpu(nvml: Any, handle: Any) -> Gpu:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    try:
        memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError:  # not supported on GPUs that share the memory of the host, such as GB10
        memory = 0
    return Gpu(name=_text(nvml.nvmlDeviceGetName(handle)), compute_capability=f"{major}.{minor}", memory_bytes=memory)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value  # nvidia-ml-py before 12 returns bytes
