"""Arguments of the Python functions as the values that plans hold.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from trtopt.errors import UsageError

if TYPE_CHECKING:
    from trtopt.compare.gates import Gate
    from trtopt.plan import DataPlan, ExportPlan, MeasurePlan
    from trtopt.shapes import AskedShape

PathText = str | PathLike[str]
"""A path, as text or as a `Path`."""


def data_plan(
    name: str, data: object, recipe: PathText | None, *, skip_bad: bool, samples: int | None
) -> DataPlan | None:
    """Return the source of samples: text or a path as on the command line, anything else as Python objects."""
    from trtopt.data.given import given
    from trtopt.plan import DataPlan

    if data is None:
        return None
    source = str(data) if isinstance(data, str | PathLike) else given(name, data)
    return DataPlan(source=source, recipe=None if recipe is None else str(recipe), skip_bad=skip_bad, samples=samples)


def measure_plan(kind: Mapping[str, str] | None, metric: Sequence[str]) -> MeasurePlan:
    """Return how outputs are interpreted and measured."""
    from trtopt.plan import MeasurePlan

    return MeasurePlan(kinds=dict(kind or {}), metrics=tuple(metric))


def export_plan(
    dtype: Mapping[str, str] | None, weights: PathText | None, signature: str | None, *, allow_drift: bool
) -> ExportPlan:
    """Return the options of an export; `dtype` is by input."""
    from trtopt.flags import input_dtypes
    from trtopt.plan import ExportPlan

    dtypes = input_dtypes([f"{name}={value}" for name, value in (dtype or {}).items()])
    return ExportPlan(dtypes=dtypes, weights=path_of("weights", weights), signature=signature, allow_drift=allow_drift)


def asked_shapes(shape: Mapping[str, str] | None) -> tuple[AskedShape, ...]:
    """Return the shapes by input, written as for `--shape`."""
    from trtopt.shapes import parse_shapes

    return parse_shapes(f"{name}={value}" for name, value in (shape or {}).items())


def gate_values(gate: str | Sequence[str]) -> tuple[Gate, ...]:
    """Return the gates on drift, written as for `--gate`."""
    from trtopt.compare.gates import parse_gates

    return parse_gates(gate_text(gate))


def gate_text(gate: str | Sequence[str]) -> str:
    """Return one or several gates as one text."""
    return gate if isinstance(gate, str) else ",".join(gate)


def path_of(name: str, value: PathText | None) -> Path | None:
    """Return an argument as a path, and None for None; as `to_path`."""
    return None if value is None else to_path(name, value)


def to_path(name: str, value: object) -> Path:
    """Return an argument as a path; `name` is what a message calls it.

    Raises:
        UsageError: it is neither text nor a path, for example a network in memory.
    """
    if isinstance(value, str | PathLike):
        return Path(value)
    fix = "Pass text or a Path"
    if hasattr(value, "SerializeToString"):
        fix = "Write it with onnx.save, and pass the file"
    elif callable(value):  # a module, or a function that returns one
        fix = "Write a function that returns the network in a file nets.py, and pass 'nets:FUNCTION' and shape=..."
    raise UsageError(f"{name} is of type {type(value).__name__}, and not a path", fix=fix)
