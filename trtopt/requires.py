"""Import of heavy and optional packages on demand, with an error that names the extra to install; their versions.

Touches: imports modules; reads the metadata of packages.
"""

from __future__ import annotations

import functools
import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from trtopt.errors import MissingDependencyError

# Top-level package -> the extra of trtopt that installs it.
_EXTRAS = {
    "onnxruntime": "cpu",
    "pynvml": "gpu",
    "cuda": "gpu",
    "torch": "torch",
    "tensorflow": "tensorflow",
    "tf2onnx": "tensorflow",
    "tensorrt_rtx": "rtx",
    "pycuda": "pycuda",
    "pyarrow": "text",
    "tokenizers": "text",
}


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
        extra = _EXTRAS.get(package)
        target = f"'trtopt[{extra}]'" if extra else package
        raise MissingDependencyError(
            f"{package} is required but cannot be imported", why=str(error), fix=f"Install it: pip install {target}"
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
