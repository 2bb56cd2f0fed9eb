"""Whether a sample fits the model: names, dtypes and shapes from its headers, and values when it is loaded.

The rules are those of `trtopt.data.sample`.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from trtopt.data.dataset import Feed
from trtopt.errors import DataError
from trtopt.types import Dim, TensorSpec

_INTEGERS = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))


class Header(NamedTuple):
    """Dtype and shape of one array of a sample, read without its values."""

    dtype: str
    shape: tuple[int, ...]


def check(headers: Mapping[str, Header], inputs: tuple[TensorSpec, ...], sample: str) -> tuple[tuple[int, ...], ...]:
    """Return the shape in which the sample is fed to each input, including an added batch axis, in the inputs' order.

    Raises:
        DataError: the sample lacks an input or has an unknown one, or a dtype or a shape is wrong.
    """
    wanted = ", ".join(f"{spec.name} ({spec.dtype} {shape_text(spec.shape)})" for spec in inputs)
    names = [spec.name for spec in inputs]
    missing = [name for name in names if name not in headers]
    if missing:
        arrays = f"it has {', '.join(map(str, headers))}" if headers else "it has no arrays"
        others = [name for name in headers if name not in names]
        raise DataError(
            f"{sample}: no array for input {', '.join(missing)}",
            why=f"{arrays}; the model takes {wanted}",
            fix=f"Rename {others[0]} to {missing[0]}" if len(names) == len(headers) == 1 else "",
        )
    unknown = [str(name) for name in headers if name not in names]
    if unknown:
        raise DataError(f"{sample}: {', '.join(unknown)} is not an input", why=f"the model's inputs are {wanted}")
    batch = fixed_batch(inputs)
    fed = tuple(_check_one(headers[spec.name], spec, batch, sample) for spec in inputs)
    added = {len(headers[spec.name].shape) < len(spec.shape) for spec in inputs}
    if batch > 1 and len(added) > 1:
        raise DataError(f"{sample}: only some arrays have a batch axis", why=f"the model takes {wanted}")
    return fed


def _check_one(header: Header, spec: TensorSpec, batch: int, sample: str) -> tuple[int, ...]:
    if not _castable(header.dtype, spec.dtype):
        if not hasattr(np, spec.dtype):
            raise DataError(
                f"{sample}: {spec.name} is {header.dtype}",
                why=f"the model takes {spec.dtype}, a type that NumPy files do not have",
                fix="Export the model with an input of another type, and a Cast to this one behind it",
            )
        raise DataError(
            f"{sample}: {spec.name} is {header.dtype}",
            why=f"the model takes {spec.dtype}, and values are never cast silently",
            fix=f"Save the array as {spec.dtype} (array.astype(numpy.{spec.dtype}))",
        )
    rank = len(spec.shape)
    wrong = DataError(
        f"{sample}: {spec.name} has shape {shape_text(header.shape)}",
        why=f"the model takes {shape_text(spec.shape)}, with or without the first axis",
        fix=_shape_fix(header.shape, spec.shape),
    )
    if len(header.shape) == rank - 1:
        shape, first = (1, *header.shape), spec.shape[0]
        if isinstance(first, int) and first not in (1, batch):
            raise wrong
        dims = list(zip(header.shape, spec.shape[1:], strict=True))
    elif len(header.shape) == rank:
        shape, dims = header.shape, list(zip(header.shape, spec.shape, strict=True))
    else:
        raise wrong
    # A dynamic size may be 0, such as the length of the past.
    if any(isinstance(want, int) and have != want for have, want in dims):
        raise wrong
    return shape


def _fits(shape: Sequence[int], wanted: Sequence[Dim]) -> bool:
    """Return whether a shape has the wanted sizes, of which those of dynamic axes are texts."""
    return all(isinstance(want, str) or size == want for size, want in zip(shape, wanted, strict=True))


def _shape_fix(have: tuple[int, ...], want: tuple[Dim, ...]) -> str:
    """Return what most likely makes the shape of an image fit; empty if the shapes are not those of images."""
    if len(want) != 4 or len(have) not in (3, 4):
        return ""
    image, wanted = have[-3:], want[-3:]

    if _fits((image[2], image[0], image[1]), wanted):
        return 'The channels must come first: layout = "NCHW" in the recipe, or array.transpose(2, 0, 1)'
    if _fits((image[1], image[2], image[0]), wanted):
        return 'The channels must come last: layout = "NHWC" in the recipe, or array.transpose(1, 2, 0)'
    if {image[0], wanted[0]} == {1, 3} and _fits(image[1:], wanted[1:]):
        return f'Set color = "{"gray" if wanted[0] == 1 else "RGB"}" in the recipe'
    if image[0] == wanted[0] and image[0] in (1, 3):
        return 'resize = "input" in the recipe makes images of a folder fit; arrays must have the size already'
    return ""


def fit(feed: Feed, inputs: tuple[TensorSpec, ...], sample: str) -> Feed:
    """Return the sample in the form that the model takes: the inputs' dtypes, C order, with a batch axis.

    Raises:
        DataError: a floating-point array contains NaN or plus infinity. Minus infinity may be an attention mask.
    """
    fitted: Feed = {}
    for spec in inputs:
        array = feed[spec.name]
        # NaN and plus infinity are not less than infinity.
        if array.dtype.kind == "f" and not np.less(array, np.inf).all():
            bad = int(array.size - np.less(array, np.inf).sum())
            raise DataError(
                f"{sample}: {bad} of {array.size} values of {spec.name} are NaN or infinite",
                fix="Fix the sample, or leave such samples out with --skip-bad",
            )
        # A NumPy file may store values in the other byte order.
        native = array.dtype.newbyteorder("=") if array.dtype.name == spec.dtype else np.dtype(spec.dtype)
        array = np.ascontiguousarray(array, dtype=native).reshape(array.shape)
        fitted[spec.name] = array[np.newaxis] if array.ndim < len(spec.shape) else array
    return fitted


def shape_text(shape: tuple[Dim, ...]) -> str:
    """Return a shape as text, such as `[batch, 3, 224, 224]`."""
    return f"[{', '.join(map(str, shape))}]"


def _castable(have: str, want: str) -> bool:
    """Return whether the dtypes are equal, or both are integer types and `want` can represent all values of `have`."""
    if have == want:
        return True
    return {have, want} <= _INTEGERS and np.can_cast(np.dtype(have), np.dtype(want), "safe")


def fixed_batch(inputs: tuple[TensorSpec, ...]) -> int:
    """Return the batch size if it is fixed: the first dimension that all inputs share. Otherwise return 1."""
    firsts = {spec.shape[0] if spec.shape else 1 for spec in inputs}
    first = firsts.pop() if len(firsts) == 1 else 1
    return first if isinstance(first, int) else 1
