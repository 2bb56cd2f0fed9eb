"""Import of heavy and optional packages on demand, with an error that names what to install; their versions.

Touches: imports modules; reads the metadata of packages.
"""

from __future__ import annotations

import functools
import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from trtopt.errors import MissingDependencyError

# Top-level module -> the packages to install for it. They are named one by one, because an extra of trtopt can be
# installed only where trtopt itself can.
PACKAGES = {
    "onnxruntime": "onnxruntime",
    "pynvml": "nvidia-ml-py",
    "cuda": "'cuda-python[all]'",
    "torch": "torch safetensors",
    "safetensors": "safetensors",
    "tensorflow": "tensorflow tf2onnx",
    "tf2onnx": "tf2onnx",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx-cu13",
    "pycuda": "pycuda",
    "pyarrow": "pyarrow",
    "tokenizers": "tokenizers",
    "ray": "ray",
    "tritonclient": "'tritonclient[grpc]'",
    "yaml": "pyyaml",
}
_ORT_GPU = "onnxruntime-gpu"


def install(module: str) -> str:
    """Return the pip command that installs a module.

    onnxruntime and onnxruntime-gpu install the same module: where one of them is installed, it is repaired.
    """
    if module == "onnxruntime" and _installed(_ORT_GPU):
        return f"pip install --force-reinstall {_ORT_GPU}"
    return f"pip install {PACKAGES.get(module, module)}"


def install_onnxruntime_gpu() -> str:
    """Return the pip commands after which onnxruntime runs on a GPU."""
    command = f"pip install {_ORT_GPU}"
    return f"pip uninstall -y onnxruntime && {command}" if _installed("onnxruntime") else command


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def require(module: str) -> Any:
    """Import `module` (a dotted name) and return it.

    Raises:
        MissingDependencyError: the module is not installed; the message contains the pip command.
        KeyboardInterrupt: Ctrl-C arrived during the import.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        # A C extension turns an interrupt during its initialization into an ImportError.
        if isinstance(error.__cause__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        package = module.partition(".")[0]
        raise MissingDependencyError(
            f"{package} is required but cannot be imported", why=str(error), fix=f"Install it: {install(package)}"
        ) from error


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    return {package: installed for package in packages if (installed := _version(package))}


@functools.cache  # every stage asks, and the metadata of a package takes a millisecond to read
def _version(package: str) -> str:
    """Return the version of a package; empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
