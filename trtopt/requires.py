"""Import a heavy or optional package at the moment it is needed, or say which extra brings it.

Touches: imports modules; nothing on disk.
"""

from __future__ import annotations

import importlib
from typing import Any

from trtopt.errors import MissingDependencyError

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
    """Return the imported module.

    Raises:
        MissingDependencyError: it is not installed; the message holds the pip command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        extra = _EXTRAS.get(package)
        target = f"'trtopt[{extra}]'" if extra else package
        raise MissingDependencyError(
            f"{package} is needed and cannot be imported", why=str(error), fix=f"Install it: pip install {target}"
        ) from error
