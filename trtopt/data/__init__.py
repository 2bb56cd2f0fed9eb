"""A folder, a file or a function to samples that fit the model. `open_dataset` is the one way in.

Touches: reads the user's data; runs code only for a `package.module:function`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trtopt.data import arrays, images, python, text
from trtopt.data.dataset import Batch, Dataset, batches
from trtopt.data.recipe import Recipe, load_recipe, recipe_for
from trtopt.data.sample import Samples, to_dataset
from trtopt.errors import DataError
from trtopt.types import TensorSpec

__all__ = ["Batch", "Dataset", "Recipe", "batches", "load_recipe", "open_dataset", "recipe_for"]

_KINDS = (
    "Give a folder of pictures (class subfolders give labels), .npy, .npz or a folder of them, .jsonl, .parquet, or "
    "package.module:function"
)


def open_dataset(
    source: str, inputs: tuple[TensorSpec, ...], *, recipe: Recipe | None = None, skip_bad: bool = False
) -> Dataset:
    """Return the samples of `source`, checked against the model's inputs.

    What the source is decides how it is read: a folder of pictures (`images`), a .npy or .npz or a folder of them
    (`arrays`), a .jsonl or .parquet (`text`), or `package.module:function` (`python`); each of these modules states its
    format. Names, types and shapes of all samples are checked now, from headers; values (truncated pictures, NaN) when
    a sample is loaded. With `skip_bad` every sample is loaded once now, and the bad ones are left out and listed in
    `Dataset.notes`.

    Raises:
        DataError: there is nothing at `source`, it holds no samples, or a sample does not fit; the sample is named.
        UsageError: the recipe cannot be used for this data.
        MissingDependencyError: a package for this kind of data is not installed.
    """
    try:
        return to_dataset(_read(source, inputs, recipe, skip_bad=skip_bad), inputs, skip_bad=skip_bad)
    except OSError as error:
        raise DataError(f"{source}: cannot be read", why=str(error)) from error


def _read(source: str, inputs: tuple[TensorSpec, ...], recipe: Recipe | None, *, skip_bad: bool) -> Samples:
    path = Path(source)
    if path.is_dir():
        return _read_folder(path, inputs, recipe, skip_bad=skip_bad)
    suffix = path.suffix.lower()
    if path.is_file() and suffix in text.SUFFIXES:
        return text.read_rows(path, inputs, recipe)
    if path.is_file() and suffix in arrays.SUFFIXES:
        return _without(recipe, arrays.read_file(path, inputs))
    if path.exists():
        raise DataError(f"{source}: not a kind of data that trtopt reads", fix=_KINDS)
    if python.is_function(source):
        return _without(recipe, python.read_function(source, inputs))
    raise DataError(f"{source}: no such file or folder", fix=_KINDS)


def _read_folder(folder: Path, inputs: tuple[TensorSpec, ...], recipe: Recipe | None, *, skip_bad: bool) -> Samples:
    pictures, files = images.find(folder), arrays.find(folder)
    if pictures.names and files:
        raise DataError(
            f"{folder}: holds pictures and arrays",
            why=f"{pictures.names[0]} and {files[0]}, among others",
            fix="Keep them in folders of their own",
        )
    if files:
        return _without(recipe, arrays.read_folder(folder, files, inputs, skip_bad=skip_bad))
    if not pictures.names:
        raise DataError(f"{folder}: no samples", why="it holds no pictures, .npy or .npz", fix=_KINDS)
    if recipe is not None:
        return images.read_pictures(pictures, recipe, inputs)
    assumed, note = recipe_for(folder, inputs)
    return _noted(images.read_pictures(pictures, assumed, inputs), note)


def _without(recipe: Recipe | None, samples: Samples) -> Samples:
    if recipe is None:
        return samples
    return _noted(samples, f"recipe {recipe.name} is not applied to {samples.source}: arrays are fed as they are")


def _noted(samples: Samples, note: str) -> Samples:
    return replace(samples, notes=(*samples.notes, note))
