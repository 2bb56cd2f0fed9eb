"""Inputs beside the image: the [inputs.NAME] tables of a recipe.

    [inputs.im_shape]
    value = [640, 640]        # the same for every image, in the shape that the input has without its batch axis

    [inputs.scale_factor]
    rows = "scale.npy"        # a row for each image, in the sorted order of their names

    [inputs.anchors]
    file = "anchors.npy"      # the same array for every image

Touches: reads .npy files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trtopt.data.dataset import Array
from trtopt.data.digest import of_file
from trtopt.data.values import check_keys
from trtopt.errors import DataError, UsageError
from trtopt.types import TensorSpec

_KEYS = ("value", "file", "rows")


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """Source of an input: a `value` (numbers, nested), or a .npy `file`, whose `rows` may belong to the images."""

    value: Any = None
    file: Path | None = None
    rows: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of the file, or the value as text."""
        return of_file(self.file) if self.file is not None else repr(self.value)


def parse_inputs(tables: Any, where: str, folder: Path) -> dict[str, Constant]:
    """Return the [inputs.NAME] tables of a recipe, whose files are relative to `folder`.

    Raises:
        UsageError: a table, a key or a value is wrong.
    """
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise UsageError(f"{where}: inputs is not a table", fix="Write [inputs.NAME] on a line of its own")
    found = {}
    for name, table in tables.items():
        place = f"{where} [inputs.{name}]"
        check_keys(table, _KEYS, place, "key")
        if len(table) != 1:
            raise UsageError(f"{place}: {len(table)} keys", fix="Write one of value, file and rows")
        ((key, value),) = table.items()
        if key == "value":
            _array(value, place)
            found[name] = Constant(value=value)
            continue
        if not isinstance(value, str) or not value.endswith(".npy"):
            raise UsageError(f"{place}: {key} is {value!r}", fix="Write the path of a .npy file")
        path = folder / value
        if not path.is_file():
            raise UsageError(f"{place}: {path} does not exist")
        found[name] = Constant(file=path, rows=key == "rows")
    return found


def _array(value: Any, where: str) -> Array:
    """Return numbers, nested in lists, as an array."""
    try:
        array = np.array(value)
    except ValueError:
        array = np.array(None)
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise UsageError(
            f"{where}: value is {value!r}", why="it must be a finite number, or lists of them of one length"
        )
    return array


def per_sample(
    constants: Mapping[str, Constant], specs: Mapping[str, TensorSpec], ids: tuple[str, ...]
) -> list[dict[str, Array]]:
    """Return the arrays of each image, by the name of the input.

    Raises:
        DataError: a file cannot be read, does not have a row for each image, or has another type than the input.
    """
    feeds: list[dict[str, Array]] = [{} for _ in ids]
    for name, constant in constants.items():
        if constant.file is None:
            array = _cast(np.array(constant.value), specs[name])
        else:
            try:
                array = np.load(constant.file, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise DataError(f"{constant.file}: cannot be read as .npy", why=str(error)[:200]) from error
        if constant.rows and array.shape[:1] != (len(ids),):
            raise DataError(
                f"{constant.file}: its shape is {list(array.shape)}",
                why=f"there are {len(ids)} images, and each needs a row",
            )
        for place, feed in enumerate(feeds):
            feed[name] = array[place] if constant.rows else array
    return feeds


def _cast(array: Array, spec: TensorSpec) -> Array:
    """Return numbers of a recipe, which have no type of their own, in the type of the input.

    Raises:
        DataError: the type cannot hold them.
    """
    if not hasattr(np, spec.dtype):
        raise DataError(f"input {spec.name} is {spec.dtype}, a type that a recipe cannot give")
    cast = array.astype(np.dtype(spec.dtype))
    same = np.allclose(cast, array, rtol=1e-3) if cast.dtype.kind == "f" else np.array_equal(cast, array)
    if not same:
        raise DataError(f"input {spec.name} is {spec.dtype}", why=f"the recipe gives {array.tolist()}")
    return cast
