"""`--shape` flags, and the profile that they and the model's inputs make.

Touches: nothing.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from trtopt.errors import UsageError
from trtopt.types import Dim, ShapeRange, TensorSpec

DEFAULT_BATCH = (1, 8, 32)
"""Smallest, best-tuned and largest batch of a dynamic batch dimension that `--shape` says nothing about."""

_EXAMPLE_SIZE = 224
"""Stands for a dynamic size other than the batch in the examples that messages give: a usual picture's side."""

Seen = Mapping[str, Sequence[tuple[int, ...]]]
"""The shapes that samples give each input."""


def profile(
    inputs: Sequence[TensorSpec], shapes: Sequence[str], seen: Callable[[], Seen] = dict
) -> tuple[tuple[ShapeRange, ...], str]:
    """Return the shape range of every dynamic input, and a line that states what was assumed (empty: nothing).

    `shapes` are flags `NAME=MIN:OPT:MAX` or `NAME=SHAPE`, each shape written 1x3x224x224. A dynamic first dimension
    without a flag gets `DEFAULT_BATCH`. Where a flag is missing, the error proposes one, with the sizes that samples
    have, as `seen` tells.

    Raises:
        UsageError: a flag does not parse, does not fit the model or is given twice, or another dynamic dimension has
            no flag.
    """
    given: dict[str, ShapeRange] = {}
    for flag in shapes:
        entry = _parse_shape(flag, inputs)
        if entry.name in given:
            raise UsageError(f"--shape is given twice for input {entry.name}", fix="Keep one of the two")
        given[entry.name] = entry
    _check_missing([spec for spec in inputs if spec.name not in given and set(_dynamic(spec)) - {0}], seen)
    low, best, high = DEFAULT_BATCH
    assumed = False
    ranges = []
    for spec in inputs:
        if spec.name in given:
            ranges.append(given[spec.name])
        elif _dynamic(spec):
            ranges.append(
                ShapeRange(name=spec.name, min=_sizes(spec, low), opt=_sizes(spec, best), max=_sizes(spec, high))
            )
            assumed = True
    return tuple(ranges), f"batch {low} to {high}, tuned for {best}: --shape was not given" if assumed else ""


def _check_missing(missing: Sequence[TensorSpec], seen: Callable[[], Seen]) -> None:
    if missing:
        found = seen()
        shapes = ", ".join(f"{spec.name} [{', '.join(map(str, spec.shape))}]" for spec in missing)
        flags = " ".join(f"--shape {shlex.quote(_example(spec, found.get(spec.name, ())))}" for spec in missing)
        whose = "as in the samples" if any(found.get(spec.name) for spec in missing) else "with your sizes"
        raise UsageError(
            f"dynamic dimensions without sizes: {shapes}",
            why="TensorRT must know how small and how large they get",
            fix=f"Add {flags} (smallest:usual:largest, {whose})",
        )


def _dynamic(spec: TensorSpec) -> list[int]:
    """Axes of unknown size."""
    return [axis for axis, dim in enumerate(spec.shape) if isinstance(dim, str)]


def _sizes(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    """A shape that fits the input: `batch` for a dynamic first dimension, `_EXAMPLE_SIZE` for other dynamic ones."""
    guesses = (batch if axis == 0 else _EXAMPLE_SIZE for axis in range(len(spec.shape)))
    return tuple(dim if isinstance(dim, int) else guess for dim, guess in zip(spec.shape, guesses, strict=True))


def _example(spec: TensorSpec, seen: Sequence[tuple[int, ...]] = ()) -> str:
    three = [_sizes(spec, batch) for batch in DEFAULT_BATCH]
    for axis in _dynamic(spec):
        sizes = sorted(shape[axis] for shape in seen)
        if sizes and (axis or sizes[-1] > 1):  # a first dimension of 1 is a batch, which samples do not tell
            picked = (sizes[0], sizes[len(sizes) // 2], sizes[-1])
            three = [(*shape[:axis], size, *shape[axis + 1 :]) for shape, size in zip(three, picked, strict=True)]
    return f"{spec.name}=" + ":".join("x".join(map(str, shape)) for shape in three)


def fixed(inputs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[Dim]]) -> tuple[TensorSpec, ...]:
    """The inputs with those dynamic dimensions fixed that have a size in `shapes`, and with them all of their name."""
    known = {
        (spec.name, axis): size
        for spec in inputs
        for axis, size in enumerate(shapes.get(spec.name, ()))
        if isinstance(size, int) and axis < len(spec.shape) and isinstance(spec.shape[axis], str)
    }
    # An unnamed dimension, "?", is like no other.
    alike = {
        spec.shape[axis]: known[spec.name, axis]
        for spec in inputs
        for axis in _dynamic(spec)
        if (spec.name, axis) in known
    }
    return tuple(
        replace(
            spec,
            shape=tuple(
                known.get((spec.name, axis), dim if dim == "?" else alike.get(dim, dim))
                for axis, dim in enumerate(spec.shape)
            ),
        )
        for spec in inputs
    )


def named(shapes: Iterable[str]) -> set[str]:
    """The inputs that `--shape` flags are of."""
    return {flag.rpartition("=")[0] for flag in shapes}


def of_profile(ranges: Iterable[ShapeRange]) -> dict[str, tuple[Dim, ...]]:
    """The shape of each input of a profile: a size where smallest and largest are equal, else `?`."""
    return {
        entry.name: tuple(least if least == most else "?" for least, most in zip(entry.min, entry.max, strict=True))
        for entry in ranges
    }


def free_shape(flag: str) -> ShapeRange:
    """Parse a `--shape` flag of a source that does not say what its inputs are.

    Raises:
        UsageError: it does not parse.
    """
    name, _, text = flag.rpartition("=")
    rank = text.partition(":")[0].count("x") + 1
    return _parse_shape(flag, [TensorSpec(name=name, dtype="float32", shape=("?",) * rank)])


def _parse_shape(flag: str, inputs: Sequence[TensorSpec]) -> ShapeRange:
    name, _, text = flag.rpartition("=")
    spec = next((spec for spec in inputs if spec.name == name), None)
    if spec is None:
        names = ", ".join(spec.name for spec in inputs)
        raise UsageError(f"--shape {flag} names no input of the model", fix=f"Its inputs are: {names}")
    example = f"Write it like --shape {shlex.quote(_example(spec))}"
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(re.fullmatch(r"[0-9]{1,9}(x[0-9]{1,9})*", part) for part in parts):
        raise UsageError(f"--shape {flag} does not parse", fix=example)
    low, best, high = (tuple(map(int, part.split("x"))) for part in (parts * 3 if len(parts) == 1 else parts))
    for shape in (low, best, high):
        if len(shape) != len(spec.shape):
            raise UsageError(
                f"--shape {flag} has rank {len(shape)}", why=f"{name} has rank {len(spec.shape)}", fix=example
            )
        if min(shape) < 1:
            raise UsageError(f"--shape {flag} has a size of 0", why="TensorRT needs at least 1", fix=example)
        if any(isinstance(dim, int) and size != dim for size, dim in zip(shape, spec.shape, strict=True)):
            wanted = ", ".join(map(str, spec.shape))
            raise UsageError(f"--shape {flag} does not fit {name}", why=f"the model wants [{wanted}]", fix=example)
    if not all(a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
        why = "it must be smallest:usual:largest in every dimension"
        raise UsageError(f"--shape {flag} is not ordered", why=why, fix=example)
    return ShapeRange(name=name, min=low, opt=best, max=high)
