"""Whether onnxruntime can use a GPU here, and the error if it cannot.

Touches: nothing.
"""

from __future__ import annotations

from typing import Any

from trtopt.errors import EnvironmentUnableError
from trtopt.requires import install_onnxruntime_gpu, require

NO_PROVIDER = "the CPU package is installed, or the driver or CUDA libraries are missing"
"""Why there is no CUDA provider."""


def check_device(device: str) -> None:
    """Refuse a GPU that onnxruntime cannot use, before anything is run. Whether it works shows when a model is loaded.

    Raises:
        EnvironmentUnableError: `device` is `cuda`, and the installed onnxruntime has no CUDA provider.
        MissingDependencyError: onnxruntime is not installed.
    """
    if device.startswith("cuda") and not has_provider(require("onnxruntime")):
        raise without_cuda(NO_PROVIDER)


def has_provider(ort: Any) -> bool:
    """Return whether the installed onnxruntime lists a CUDA provider."""
    return "CUDAExecutionProvider" in ort.get_available_providers()


def without_cuda(why: str) -> EnvironmentUnableError:
    """Return the error for a GPU that onnxruntime cannot use."""
    return EnvironmentUnableError(
        "onnxruntime has no working CUDA provider here",
        why=why,
        fix=f"On a machine with an NVIDIA driver: {install_onnxruntime_gpu()}; here use --device cpu",
    )
