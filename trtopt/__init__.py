"""trtopt: turn a trained network into a TensorRT engine that is safe to deploy.

    from trtopt import convert

    report = convert("model.onnx", precision="int8", calib="data/calib", data="data/eval")
    print(report.verdict, report.engine.path)

`trtopt.api` has the functions. They are imported on use: importing trtopt imports nothing heavy.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtopt.api import bench, calibrate, compare, convert, export, inspect, merge, predict, sensitivity, tune
    from trtopt.errors import TrtoptError
    from trtopt.types import CalibrationTable, Comparison, Engine, OnnxModel, Report, TypedModel

__version__ = "0.1.0"

# Where each public name is defined.
_HOMES = {
    "CalibrationTable": "types",
    "Comparison": "types",
    "Engine": "types",
    "OnnxModel": "types",
    "Report": "types",
    "TrtoptError": "errors",
    "TypedModel": "types",
    "bench": "api",
    "calibrate": "api",
    "compare": "api",
    "convert": "api",
    "export": "api",
    "inspect": "api",
    "merge": "api",
    "predict": "api",
    "sensitivity": "api",
    "tune": "api",
}

__all__ = [
    "CalibrationTable",
    "Comparison",
    "Engine",
    "OnnxModel",
    "Report",
    "TrtoptError",
    "TypedModel",
    "bench",
    "calibrate",
    "compare",
    "convert",
    "export",
    "inspect",
    "merge",
    "predict",
    "sensitivity",
    "tune",
]


class _Package(ModuleType):
    """This module: some functions have the names of packages, such as `trtopt.compare`."""

    def __setattr__(self, name: str, value: object) -> None:
        # When a package is imported, the import system would put it in place of the function of that name.
        if not (_HOMES.get(name) == "api" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trtopt' has no attribute {name!r}")
    return getattr(importlib.import_module(f"trtopt.{_HOMES[name]}"), name)
