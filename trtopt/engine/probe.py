"""What this machine can do: `trtopt doctor`, and the versions that go into manifests.

Touches: reads package metadata; imports TensorRT, onnxruntime and pynvml, never torch or tensorflow.
"""

from __future__ import annotations

import contextlib
import importlib
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trtopt.engine.locate import MINIMUM, RTX, RTX_DEVICES, load

_PACKAGES = (
    "trtopt onnx onnx-ir onnxruntime onnxruntime-gpu tensorrt tensorrt-rtx tensorrt-rtx-cu13 tensorrt-rtx-cu12 "
    "cuda-python pycuda nvidia-ml-py torch tensorflow tf2onnx numba numpy"
).split()
_KERNEL_DRIVER = Path("/proc/driver/nvidia/version")
_TENSORRT_SINCE = (7, 5)
_RTX_RUNS = ((8, 0), (8, 6), (8, 9))
_RTX_RUNS_SINCE = (12, 0)

_PORTABILITY = (
    "An engine is loaded by the TensorRT that built it, of the same version; --version-compatible widens that to newer "
    "ones (8 to 10, 10 to 11), never back.",
    "An engine of TensorRT runs on the GPU model that it was built on, unless built with --hardware-compatible.",
    f"An engine of TensorRT-RTX is {RTX_DEVICES}, on Linux and Windows; not 9.0 (H100, H200), and with FP8 not "
    "before 8.9.",
    "TensorRT and TensorRT-RTX do not load each other's engines; onnxruntime needs 1.27 for TensorRT 11.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as the driver lists it. `memory_bytes` is all it has; 0 where it has none but the machine's own."""

    name: str
    compute_capability: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """The NVIDIA driver: its version, the newest CUDA it supports, its GPUs; or, in `absent`, why nothing is known."""

    version: str = ""
    cuda: str = ""
    gpus: tuple[Gpu, ...] = ()
    absent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One TensorRT package: where it is, or in `reason` why it is of no use."""

    name: str
    version: str = ""
    origin: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Something that is missing here, and the command that brings it."""

    what: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What there is on this machine, and what follows from it. `build` and `run` are sentences."""

    platform: str
    python: str
    packages: Mapping[str, str]
    providers: tuple[str, ...]
    tensorrt: tuple[Candidate, ...]
    driver: Driver
    can_build: bool
    build: str
    can_run: bool
    run: str
    warnings: tuple[str, ...]
    portability: tuple[str, ...]
    advice: tuple[Advice, ...]


def versions() -> dict[str, str]:
    """Versions of everything that can change a result, from package metadata; what is not installed is left out."""
    found = {"platform": platform.platform(), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed: str | None = version(package)
        except (PackageNotFoundError, KeyError):
            continue
        if installed:  # not so in what an interrupted uninstallation leaves behind
            found[package] = installed
    return found


def probe() -> Environment:
    """Look at this machine. Raises nothing: what does not work is said in the result."""
    packages = versions()
    system, python = packages.pop("platform"), packages.pop("python")
    candidates = tuple(_candidate(name) for name in MINIMUM)
    driver = read_driver()
    providers, warning = _providers(packages)
    can_build, build = _can_build(candidates, driver)
    can_run, run = _can_run(candidates, driver)
    return Environment(
        platform=system,
        python=python,
        packages=packages,
        providers=providers,
        tensorrt=candidates,
        driver=driver,
        can_build=can_build,
        build=build,
        can_run=can_run,
        run=run,
        warnings=(warning,) if warning else (),
        portability=_PORTABILITY,
        advice=_advice(packages, candidates, driver),
    )


def read_driver() -> Driver:
    """Ask the NVIDIA driver for its GPUs."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ModuleNotFoundError:
        if _KERNEL_DRIVER.exists() or shutil.which("nvidia-smi"):
            return Driver(absent="there is an NVIDIA driver; nvidia-ml-py, which reads it, is not installed")
        return Driver(absent="no NVIDIA driver")
    except Exception as error:  # noqa: BLE001 - a broken installation fails in ways of its own, and is reported
        return Driver(absent=f"nvidia-ml-py does not import: {error}")
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


def _gpu(nvml: Any, handle: Any) -> Gpu:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    try:
        memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError:  # not supported where CPU and GPU share their memory
        memory = 0
    return Gpu(name=_text(nvml.nvmlDeviceGetName(handle)), compute_capability=f"{major}.{minor}", memory_bytes=memory)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value  # bytes before nvidia-ml-py 12


def _candidate(name: str) -> Candidate:
    found = load(name)
    if isinstance(found, str):
        return Candidate(name=name, reason=found)
    return Candidate(name=name, version=found.version, origin=str(found.origin))


def _providers(packages: Mapping[str, str]) -> tuple[tuple[str, ...], str]:
    """onnxruntime's execution providers, and what is wrong with the installation."""
    warning = ""
    if "onnxruntime" in packages and "onnxruntime-gpu" in packages:
        warning = (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            "pip uninstall both, then install 'trtopt[cpu]' or 'trtopt[gpu]'"
        )
    try:
        ort: Any = importlib.import_module("onnxruntime")
        return tuple(ort.get_available_providers()), warning
    except ModuleNotFoundError as error:
        return (), warning if error.name == "onnxruntime" else f"onnxruntime does not import: {error}"
    except Exception as error:  # noqa: BLE001 - a broken installation fails in ways of its own, and is reported
        return (), f"onnxruntime does not import: {error}"


def _capability(gpu: Gpu) -> tuple[int, int]:
    major, minor = gpu.compute_capability.split(".")
    return int(major), int(minor)


def _works(name: str, gpu: Gpu) -> bool:
    capability = _capability(gpu)
    if name == RTX:
        return capability in _RTX_RUNS or capability >= _RTX_RUNS_SINCE
    return capability >= _TENSORRT_SINCE


def _can_build(candidates: tuple[Candidate, ...], driver: Driver) -> tuple[bool, str]:
    usable = {candidate.name: candidate.version for candidate in candidates if candidate.version}
    if "tensorrt" in usable and (driver.gpus or not driver.absent.startswith("no NVIDIA driver")):
        return True, f"engines for the GPU of this machine, with TensorRT {usable['tensorrt']}"
    if RTX in usable:
        choose = ", with --tensorrt tensorrt_rtx (tensorrt needs a GPU to build)" if "tensorrt" in usable else ""
        return True, f"engines with TensorRT-RTX {usable[RTX]}, {RTX_DEVICES}{choose}"
    if usable:
        return False, f"nothing: TensorRT {usable['tensorrt']} needs an NVIDIA GPU to build, and there is none"
    return False, "nothing: no TensorRT works here; calibration, precision and comparison do"


def _can_run(candidates: tuple[Candidate, ...], driver: Driver) -> tuple[bool, str]:
    lines = [
        f"{gpu.name} (compute capability {gpu.compute_capability}) "
        + ("runs" if _works(candidate.name, gpu) else "is refused by")
        + f" {candidate.name} {candidate.version}"
        for candidate in candidates
        if candidate.version
        for gpu in dict.fromkeys(driver.gpus)
    ]
    if lines:
        return any(" runs " in line for line in lines), "; ".join(lines)
    if driver.gpus:
        return False, "no engine: no TensorRT works here"
    return False, f"no engine: {driver.absent or 'the driver lists no GPU'}; the typed ONNX runs in onnxruntime"


def _advice(packages: Mapping[str, str], candidates: tuple[Candidate, ...], driver: Driver) -> tuple[Advice, ...]:
    has_driver = not driver.absent.startswith("no NVIDIA driver")
    wanted = (
        ("onnxruntime, which runs the baseline", {"onnxruntime", "onnxruntime-gpu"}, "gpu" if has_driver else "cpu"),
        ("GPU readings", {"nvidia-ml-py"}, "gpu" if has_driver else ""),
        ("running engines", {"cuda-python", "pycuda"}, "gpu" if has_driver else ""),
        ("export from PyTorch", {"torch"}, "torch"),
        ("export from TensorFlow", {"tf2onnx"}, "tensorflow"),
    )
    found = [] if any(c.version for c in candidates) else [_pip("TensorRT for RTX: engines without a GPU", "rtx")]
    if has_driver and not candidates[0].version:
        found.append(_pip("TensorRT for the GPU of this machine", "tensorrt"))
    found += [_pip(what, extra) for what, any_of, extra in wanted if extra and not any_of & packages.keys()]
    return tuple(found)


def _pip(what: str, extra: str) -> Advice:
    return Advice(what=what, command=f"pip install 'trtopt[{extra}]'")
