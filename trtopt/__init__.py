"""trtopt: turn a trained network into a TensorRT engine that is safe to deploy.

    from pathlib import Path
    from trtopt import ConvertPlan, DataPlan, convert

    plan = ConvertPlan(source=Path("model.onnx"), precision="int8", run_dir=Path("out"), calib=DataPlan(source="data/"))
    report, unable = convert(plan)

`convert` and `compare_models` are imported on use: importing trtopt imports nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtopt.commands.compare import compare as compare_models
    from trtopt.commands.convert import convert
    from trtopt.errors import TrtoptError
    from trtopt.plan import BuildPlan, ComparePlan, ConvertPlan, DataPlan
    from trtopt.types import Comparison, Engine, Report, TypedModel

__version__ = "0.1.0"

# Where each public name is defined. `compare_models` has that name because `trtopt.compare` is a package.
_HOMES = {
    "BuildPlan": "plan",
    "ComparePlan": "plan",
    "Comparison": "types",
    "ConvertPlan": "plan",
    "DataPlan": "plan",
    "Engine": "types",
    "Report": "types",
    "TrtoptError": "errors",
    "TypedModel": "types",
    "compare_models": "commands.compare",
    "convert": "commands.convert",
}

__all__ = [
    "BuildPlan",
    "ComparePlan",
    "Comparison",
    "ConvertPlan",
    "DataPlan",
    "Engine",
    "Report",
    "TrtoptError",
    "TypedModel",
    "compare_models",
    "convert",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trtopt' has no attribute {name!r}")
    return getattr(importlib.import_module(f"trtopt.{_HOMES[name]}"), name.removesuffix("_models"))
