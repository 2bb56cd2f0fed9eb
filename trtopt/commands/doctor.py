"""Capabilities of this machine, for `trtopt doctor`, and the versions of installed packages.

Touches: reads package metadata; imports TensorRT, onnxruntime and pynvml, never torch or tensorflow.
"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from trtopt.engine.cuda.driver import Driver, Gpu, read_driver
from trtopt.engine.trt.locate import load
from trtopt.engine.trt.versions import MINIMUM, RTX, RTX_DEVICES
from trtopt.requires import install, install_onnxruntime_gpu

_PACKAGES = (
    "trtopt onnx onnx-ir onnxruntime onnxruntime-gpu tensorrt tensorrt-rtx tensorrt-rtx-cu13 tensorrt-rtx-cu12 "
    "cuda-python pycuda nvidia-ml-py torch tensorflow tf2onnx numba numpy"
).split()
# Compute capabilities that TensorRT (all from here on) and TensorRT-RTX (these, and all from here on) support.
_TENSORRT_SINCE = (7, 5)
_RTX_RUNS = ((8, 0), (8, 6), (8, 9))
_RTX_RUNS_SINCE = (12, 0)

_PORTABILITY = (
    "An engine can only be loaded by the version of TensorRT that built it. With --version-compatible, newer versions "
    "can load it, too (8 to 10, 10 to 11).",
    "A TensorRT engine runs only on the GPU model that it was built on, unless built with --hardware-compatible.",
    f"A TensorRT-RTX engine is {RTX_DEVICES}, on Linux and Windows; it does not run on 9.0 (H100, H200), and with FP8 "
    "not before 8.9.",
    "Engines were run by trtopt's developers with TensorRT 8.5.3.1 on an H200, and only built with TensorRT-RTX 1.7.1. "
    "What trtopt knows about other versions is from NVIDIA's documentation (docs/versions.md).",
    "TensorRT and TensorRT-RTX cannot load each other's engines; onnxruntime needs 1.27 for TensorRT 11.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """TensorRT package with its version and folder, or with the `reason` why it is not usable."""

    name: str
    version: str = ""
    origin: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Missing component, and the command that installs it."""

    what: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Software and GPUs of this machine, and the engines that it can build and run.

    `build` and `run` describe these engines, or say why there are none.
    """

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
    """Return the versions of all installed packages that can change a result, of Python and of the platform."""
    by_package = {"platform": platform.platform(), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed: str | None = version(package)
        except (PackageNotFoundError, KeyError):
            continue
        if installed:  # None for the remains of an interrupted uninstallation
            by_package[package] = installed
    return by_package


def probe() -> Environment:
    """Inspect this machine. Nothing is raised: the result tells what does not work, and why."""
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


def _candidate(name: str) -> Candidate:
    package = load(name)
    if isinstance(package, str):  # the reason why it is not usable
        return Candidate(name=name, reason=package)
    return Candidate(name=name, version=package.version, origin=str(package.origin))


def _providers(packages: Mapping[str, str]) -> tuple[tuple[str, ...], str]:
    """Return onnxruntime's execution providers, and a warning about a faulty installation ("" if there is none)."""
    warning = ""
    if "onnxruntime" in packages and "onnxruntime-gpu" in packages:
        warning = (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            "pip uninstall both, then install onnxruntime-gpu, or onnxruntime on a machine without a GPU"
        )
    try:
        ort: Any = importlib.import_module("onnxruntime")
        return tuple(ort.get_available_providers()), warning
    except ModuleNotFoundError as error:
        # If another module is missing, onnxruntime itself is installed but broken.
        return (), warning if error.name == "onnxruntime" else f"onnxruntime cannot be imported: {error}"
    except Exception as error:  # noqa: BLE001 - a broken installation can raise anything, and is reported
        return (), f"onnxruntime cannot be imported: {error}"


def _capability(gpu: Gpu) -> tuple[int, int]:
    major, minor = gpu.compute_capability.split(".")
    return int(major), int(minor)


def _supports(name: str, gpu: Gpu) -> bool:
    """Return whether the TensorRT package `name` runs engines on a GPU."""
    capability = _capability(gpu)
    if name == RTX:
        return capability in _RTX_RUNS or capability >= _RTX_RUNS_SINCE
    return capability >= _TENSORRT_SINCE


def _can_build(candidates: tuple[Candidate, ...], driver: Driver) -> tuple[bool, str]:
    """Return whether engines can be built here, and a description of these engines or the reason why not."""
    usable = {candidate.name: candidate.version for candidate in candidates if candidate.version}
    # A driver that cannot be queried may well have a GPU. The build itself will tell.
    if "tensorrt" in usable and (driver.gpus or not driver.absent.startswith("no NVIDIA driver")):
        return True, f"engines for the GPU of this machine, with TensorRT {usable['tensorrt']}"
    if RTX in usable:
        choose = ", with --tensorrt tensorrt_rtx (tensorrt needs a GPU to build)" if "tensorrt" in usable else ""
        return True, f"engines with TensorRT-RTX {usable[RTX]}, {RTX_DEVICES}{choose}"
    if usable:
        return False, f"nothing: TensorRT {usable['tensorrt']} needs an NVIDIA GPU to build, and this machine has none"
    return False, "nothing: TensorRT does not work here; calibration, precision and comparison do"


def _can_run(candidates: tuple[Candidate, ...], driver: Driver) -> tuple[bool, str]:
    """Return whether engines can run here, and which packages support which GPU or the reason why not."""
    lines, any_supported = [], False
    for candidate in candidates:
        if not candidate.version:
            continue
        for gpu in dict.fromkeys(driver.gpus):  # each model once
            supported = _supports(candidate.name, gpu)
            any_supported = any_supported or supported
            verb = "is supported by" if supported else "is not supported by"
            name = f"{gpu.name} (compute capability {gpu.compute_capability})"
            lines.append(f"{name} {verb} {candidate.name} {candidate.version}")
    if lines:
        return any_supported, "; ".join(lines)
    if driver.gpus:
        return False, "no engine: TensorRT does not work here"
    return False, f"no engine: {driver.absent or 'the driver lists no GPU'}; the typed ONNX graph runs in onnxruntime"


def _advice(packages: Mapping[str, str], candidates: tuple[Candidate, ...], driver: Driver) -> tuple[Advice, ...]:
    """Return the missing components that are useful on this machine."""
    has_driver = not driver.absent.startswith("no NVIDIA driver")
    # What for, the packages of which one is enough, and the module to install ("" if it is of no use here).
    components = (
        (
            "onnxruntime, which runs the baseline",
            {"onnxruntime", "onnxruntime-gpu"},
            "onnxruntime-gpu" if has_driver else "onnxruntime",
        ),
        ("GPU readings", {"nvidia-ml-py"}, "pynvml" if has_driver else ""),
        ("running engines", {"cuda-python", "pycuda"}, "cuda" if has_driver else ""),
        ("export from PyTorch", {"torch"}, "torch"),
        ("export from TensorFlow", {"tf2onnx"}, "tensorflow"),
    )
    advice = []
    if not any(candidate.version for candidate in candidates):
        advice.append(_pip("TensorRT for RTX: engines without a GPU", RTX))
    if has_driver and not candidates[0].version:
        advice.append(_pip("TensorRT for the GPU of this machine", "tensorrt"))
    advice += [_pip(what, module) for what, any_of, module in components if module and not any_of & packages.keys()]
    return tuple(advice)


def _pip(what: str, module: str) -> Advice:
    if module == "onnxruntime-gpu":
        return Advice(what=what, command=install_onnxruntime_gpu())
    return Advice(what=what, command=install(module))
