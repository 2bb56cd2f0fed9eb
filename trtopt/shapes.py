"""`--shape` flags, and the optimization profile that follows from them and from the model's inputs.

Touches: nothing.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from trtopt.errors import UsageError
from trtopt.types import Dim, ShapeRange, TensorSpec

DEFAULT_BATCH = (1, 8, 32)
"""Smallest, optimal and largest batch size of a dynamic batch dimension without a `--shape` flag."""

_EXAMPLE_SIZE = 224
"""Size of dynamic dimensions other than the batch in the examples of error messages: a usual image side."""

_MOST = 1 << 16
"""Largest size of a dynamic dimension of an input that no output depends on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedShape:
    """A `--shape` flag, `NAME=MIN:OPT:MAX` or `NAME=SHAPE`, with each shape written like 1x3x224x224.

    `sizes` are the one or three shapes; empty if `text`, the flag as it was written, does not parse.
    """

    name: str
    sizes: tuple[tuple[int, ...], ...]
    text: str


Seen = Mapping[str, Sequence[tuple[int, ...]]]
"""Shapes that occur in the samples, by input name."""


def profile(
    inputs: Sequence[TensorSpec],
    shapes: Sequence[AskedShape],
    seen: Callable[[], Seen] = dict,
    unread: Callable[[], Collection[str]] = tuple,
) -> tuple[tuple[ShapeRange, ...], str]:
    """Return the shape range of every dynamic input, and a sentence on what was assumed (empty if nothing was).

    Args:
        inputs: the model's inputs.
        shapes: the `--shape` flags. A dynamic first dimension without a flag gets `DEFAULT_BATCH`.
        seen: returns the shapes that occur in the samples. Called only to propose sizes for a missing flag.
        unread: returns the inputs that no output depends on. They need no flag, and any size of theirs is in range.
            Called only if a flag is missing.

    Raises:
        UsageError: a flag does not parse, does not fit the model or is given twice, or a dynamic dimension other than
            the first has no flag.
    """
    ranges_by_input: dict[str, ShapeRange] = {}
    for flag in shapes:
        entry = _fitting(flag, inputs)
        if entry.name in ranges_by_input:
            raise UsageError(f"--shape is given twice for input {entry.name}", fix="Keep one of the two")
        ranges_by_input[entry.name] = entry
    # The batch (axis 0) has a default range. No default is plausible for any other dimension.
    missing = [spec for spec in inputs if spec.name not in ranges_by_input and set(_dynamic(spec)) - {0}]
    free = set(unread()) if missing else set()
    _check_missing([spec for spec in missing if spec.name not in free], seen)
    low, best, high = DEFAULT_BATCH
    assumed = False
    ranges = []
    for spec in inputs:
        if spec.name in ranges_by_input:
            ranges.append(ranges_by_input[spec.name])
        elif _dynamic(spec) and spec.name in free:
            ranges.append(ShapeRange(name=spec.name, min=_any(spec, 1), opt=_any(spec, best), max=_any(spec, _MOST)))
        elif _dynamic(spec):
            ranges.append(
                ShapeRange(name=spec.name, min=_sizes(spec, low), opt=_sizes(spec, best), max=_sizes(spec, high))
            )
            assumed = True
    remark = f"--shape not given: assuming batch {low} to {high}, optimized for {best}" if assumed else ""
    return tuple(ranges), remark


def _any(spec: TensorSpec, size: int) -> tuple[int, ...]:
    """Return the shape of an input with `size` as every dynamic dimension."""
    return tuple(dim if isinstance(dim, int) else size for dim in spec.shape)


def _check_missing(missing: Sequence[TensorSpec], seen: Callable[[], Seen]) -> None:
    """Raise a `UsageError` that proposes a `--shape` flag for each of the inputs, if there are any."""
    if not missing:
        return
    sample_shapes = seen()
    shapes = ", ".join(f"{spec.name} [{', '.join(map(str, spec.shape))}]" for spec in missing)
    flags = " ".join(f"--shape {shlex.quote(_example(spec, sample_shapes.get(spec.name, ())))}" for spec in missing)
    whose = "as in the samples" if any(sample_shapes.get(spec.name) for spec in missing) else "with your sizes"
    raise UsageError(
        f"dynamic dimensions without sizes: {shapes}",
        why="TensorRT needs their smallest and largest size",
        fix=f"Add {flags} (smallest:usual:largest, {whose})",
    )


def _dynamic(spec: TensorSpec) -> list[int]:
    """Return the axes of unknown size."""
    return [axis for axis, dim in enumerate(spec.shape) if isinstance(dim, str)]


def _sizes(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    """Return a shape that fits the input: `batch` as a dynamic first dimension, `_EXAMPLE_SIZE` as any other."""
    guesses = (batch if axis == 0 else _EXAMPLE_SIZE for axis in range(len(spec.shape)))
    return tuple(dim if isinstance(dim, int) else guess for dim, guess in zip(spec.shape, guesses, strict=True))


def _example(spec: TensorSpec, sample_shapes: Sequence[tuple[int, ...]] = ()) -> str:
    """Return the value of a `--shape` flag that fits the input, with the sizes of the samples where they are known."""
    min_opt_max = [_sizes(spec, batch) for batch in DEFAULT_BATCH]
    for axis in _dynamic(spec):
        sizes = sorted(shape[axis] for shape in sample_shapes)
        if not sizes:
            continue
        # A first dimension of 1 is the batch axis of a single sample: it says nothing about the batch in production.
        if axis == 0 and sizes[-1] <= 1:
            continue
        chosen = (sizes[0], max(sizes[len(sizes) // 2], 1), max(sizes[-1], 1))
        min_opt_max = [
            (*shape[:axis], size, *shape[axis + 1 :]) for shape, size in zip(min_opt_max, chosen, strict=True)
        ]
    return f"{spec.name}=" + ":".join("x".join(map(str, shape)) for shape in min_opt_max)


def fixed(inputs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[Dim]]) -> tuple[TensorSpec, ...]:
    """Return the inputs with their dynamic dimensions replaced by the sizes in `shapes`, where those are integers.

    A size found for a named dimension also replaces that name in the other inputs.
    """
    size_by_axis = {
        (spec.name, axis): size
        for spec in inputs
        for axis, size in enumerate(shapes.get(spec.name, ()))
        if isinstance(size, int) and axis < len(spec.shape) and isinstance(spec.shape[axis], str)
    }
    size_by_name = {
        spec.shape[axis]: size_by_axis[spec.name, axis]
        for spec in inputs
        for axis in _dynamic(spec)
        if (spec.name, axis) in size_by_axis
    }
    # "?" marks a dimension without a name: two of them need not have the same size.
    size_by_name.pop("?", None)

    def fix(spec: TensorSpec) -> TensorSpec:
        dims = [size_by_axis.get((spec.name, axis), size_by_name.get(dim, dim)) for axis, dim in enumerate(spec.shape)]
        return replace(spec, shape=tuple(dims))

    return tuple(fix(spec) for spec in inputs)


def named(shapes: Iterable[AskedShape]) -> set[str]:
    """Return the names of the inputs in `--shape` flags."""
    return {asked.name for asked in shapes}


def of_profile(ranges: Iterable[ShapeRange]) -> dict[str, tuple[Dim, ...]]:
    """Return the shape of each input of a profile, with `?` for dimensions whose smallest and largest size differ."""
    return {
        entry.name: tuple(least if least == most else "?" for least, most in zip(entry.min, entry.max, strict=True))
        for entry in ranges
    }


def parse_shapes(flags: Iterable[str]) -> tuple[AskedShape, ...]:
    """Return the values of `--shape` flags. What they lack is refused where the model is known, which the fix shows."""
    return tuple(map(_parse_shape, flags))


def _parse_shape(flag: str) -> AskedShape:
    # The shape is split off at the last "=": an input's name may contain "=" and ":".
    name, _, text = flag.rpartition("=")
    parts = text.split(":")
    readable = len(parts) in (1, 3) and all(re.fullmatch(r"[0-9]{1,9}(x[0-9]{1,9})*", part) for part in parts)
    sizes = tuple(tuple(map(int, part.split("x"))) for part in parts) if readable else ()
    return AskedShape(name=name, sizes=sizes, text=flag)


def free_shape(asked: AskedShape) -> ShapeRange:
    """Return the shape range of an input of a source that does not record its inputs.

    Raises:
        UsageError: the flag does not parse.
    """
    rank = len(asked.sizes[0]) if asked.sizes else 1
    # Without a model to check against, every dimension accepts any size.
    return _fitting(asked, [TensorSpec(name=asked.name, dtype="float32", shape=("?",) * rank)])


def _fitting(asked: AskedShape, inputs: Sequence[TensorSpec]) -> ShapeRange:
    flag, name = asked.text, asked.name
    spec = next((spec for spec in inputs if spec.name == name), None)
    if spec is None:
        names = ", ".join(spec.name for spec in inputs)
        if not name:
            text = flag.rpartition("=")[2]
            raise UsageError(
                f"--shape {flag} names no input",
                fix=f"Write --shape {inputs[0].name if inputs else 'INPUT'}={text}; the inputs are: {names}",
            )
        raise UsageError(f"--shape {flag}: the model has no such input", fix=f"Its inputs are: {names}")
    example = f"Write it like --shape {shlex.quote(_example(spec))}"
    if not asked.sizes:
        raise UsageError(f"--shape {flag} does not parse", fix=example)
    low, best, high = asked.sizes * 3 if len(asked.sizes) == 1 else asked.sizes
    for place, shape in enumerate((low, best, high)):
        if len(shape) != len(spec.shape):
            raise UsageError(
                f"--shape {flag} has rank {len(shape)}", why=f"{name} has rank {len(spec.shape)}", fix=example
            )
        if 0 in shape and place:
            why = "only the smallest size of a dimension may be 0"
            raise UsageError(f"--shape {flag} has a size of 0", why=why, fix=example)
        if any(isinstance(dim, int) and size != dim for size, dim in zip(shape, spec.shape, strict=True)):
            wanted = ", ".join(map(str, spec.shape))
            raise UsageError(f"--shape {flag} does not fit {name}", why=f"the model expects [{wanted}]", fix=example)
    if not all(a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
        why = "it must be smallest:usual:largest in every dimension"
        raise UsageError(f"--shape {flag} is not ordered", why=why, fix=example)
    return ShapeRange(name=name, min=low, opt=best, max=high)
