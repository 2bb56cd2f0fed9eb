"""Validation of an optimization profile, and of the names, of a model's inputs.

Touches: nothing.
"""

from __future__ import annotations

from trtopt.errors import BuildError, UsageError
from trtopt.types import OnnxModel, ShapeRange, TensorSpec


def check_profile(inputs: tuple[TensorSpec, ...], profile: tuple[ShapeRange, ...]) -> None:
    """Raise a UsageError unless the profile has one valid range of shapes for every dynamic input.

    TensorRT's `set_shape` accepts anything; a mistake would cause another error much later.
    """
    specs = {spec.name: spec for spec in inputs}
    for entry in profile:
        spec = specs.get(entry.name)
        if spec is None:
            raise UsageError(
                f"--shape {entry.name}: the model has no such input", fix=f"Its inputs are: {', '.join(specs)}"
            )
        _check_range(spec, entry)
    ranged = [entry.name for entry in profile]
    for spec in inputs:
        dynamic = any(isinstance(dim, str) for dim in spec.shape)
        if ranged.count(spec.name) > 1 or (dynamic and spec.name not in ranged):
            raise UsageError(
                f"input {spec.name} has {'two ranges of shapes' if spec.name in ranged else 'no range of shapes'}",
                why=f"its shape is [{', '.join(map(str, spec.shape))}]",
                fix=f"Give one: --shape {spec.name}=SMALLEST:USUAL:LARGEST",
            )


def _check_range(spec: TensorSpec, entry: ShapeRange) -> None:
    """Raise a UsageError if a range of shapes does not fit its input."""
    what = f"the shapes of input {entry.name} do not fit"
    for shape in (entry.min, entry.opt, entry.max):
        if len(shape) != len(spec.shape):
            raise UsageError(what, why=f"{list(shape)} has rank {len(shape)}, the input has rank {len(spec.shape)}")
        for size, dim in zip(shape, spec.shape, strict=True):
            if size < 0 or (isinstance(dim, int) and size != dim):
                expected = ", ".join(map(str, spec.shape))
                raise UsageError(what, why=f"{list(shape)} was given, the model expects [{expected}]")
    if not all(low <= best <= high for low, best, high in zip(entry.min, entry.opt, entry.max, strict=True)):
        why = f"not in ascending order: {list(entry.min)}, {list(entry.opt)}, {list(entry.max)}"
        raise UsageError(what, why=why)


def check_names(model: OnnxModel) -> None:
    """Raise a BuildError if a tensor is an input and an output at once: TensorRT renames such an input."""
    both = [spec.name for spec in model.outputs if spec.name in {entry.name for entry in model.inputs}]
    if both:
        raise BuildError(
            f"{both[0]} is an input and an output",
            why="the tensors of an engine have one role each",
            fix="Export the model with an Identity before that output, under a name of its own",
        )
