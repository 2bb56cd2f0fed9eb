"""A folder, a file or a function to samples that fit the model. `open_dataset` is the one way in.

Touches: reads the user's data; runs code only for a `package.module:function`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trtopt.data import arrays, images, labels, python, text
from trtopt.data.classes import read_classes
from trtopt.data.dataset import Batch, Dataset, batches
from trtopt.data.labels import Labelling
from trtopt.data.recipe import Recipe, load_recipe, recipe_for
from trtopt.data.sample import Samples, to_dataset
from trtopt.errors import DataError, UsageError
from trtopt.types import TensorSpec

__all__ = [
    "Batch",
    "Dataset",
    "Labelling",
    "Recipe",
    "batches",
    "load_recipe",
    "open_dataset",
    "read_classes",
    "recipe_for",
]

_KINDS = (
    "Give a folder of images (class subfolders give labels), .npy, .npz or a folder of them, .jsonl, .parquet, or "
    "package.module:function"
)
_NO_LABELLING = Labelling()


def open_dataset(
    source: str,
    inputs: tuple[TensorSpec, ...],
    *,
    recipe: Recipe | None = None,
    labelling: Labelling = _NO_LABELLING,
    skip_bad: bool = False,
) -> Dataset:
    """Return the samples of `source`, checked against the model's inputs.

    What the source is decides how it is read: a folder of images (`images`, `labels`), a .npy or .npz or a folder of
    them (`arrays`), a .jsonl or .parquet (`text`), or `package.module:function` (`python`); each of these modules
    states its format. Names, types and shapes of all samples are checked now, from headers; values (truncated images,
    NaN) when a sample is loaded. With `skip_bad` every sample is loaded once now, and the bad ones are left out and
    listed in `Dataset.notes`. Class names of `labelling` go before those of the recipe.

    Raises:
        DataError: there is nothing at `source`, it holds no samples, or a sample or a label does not fit; it is named.
        UsageError: the recipe or the labelling cannot be used for this data.
        MissingDependencyError: a package for this kind of data is not installed.
    """
    folder = Path(source)
    try:
        names = images.find(folder) if folder.is_dir() else ()
        if names:
            samples = _read_images(folder, names, inputs, recipe, labelling)
        elif labelling == _NO_LABELLING:
            samples = _read(source, inputs, recipe, skip_bad=skip_bad)
        else:
            flag = "--labels" if labelling.file else "--classes"
            raise UsageError(
                f"{flag} is for a folder of images",
                why=f"{source} is none; other data hold class indices themselves",
                fix="Leave it out",
            )
        return to_dataset(samples, inputs, skip_bad=skip_bad)
    except OSError as error:
        raise DataError(f"{source}: cannot be read", why=str(error)) from error


def _read(source: str, inputs: tuple[TensorSpec, ...], recipe: Recipe | None, *, skip_bad: bool) -> Samples:
    path = Path(source)
    if path.is_dir():
        files = arrays.find(path)
        if not files:
            raise DataError(f"{path}: no samples", why="it holds no images, .npy or .npz", fix=_KINDS)
        return _without(recipe, arrays.read_folder(path, files, inputs, skip_bad=skip_bad))
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


def _read_images(
    folder: Path, names: tuple[str, ...], inputs: tuple[TensorSpec, ...], recipe: Recipe | None, labelling: Labelling
) -> Samples:
    if files := arrays.find(folder):
        raise DataError(
            f"{folder}: holds images and arrays",
            why=f"{names[0]} and {files[0]}, among others",
            fix="Keep them in folders of their own",
        )
    assumed, note = (recipe, "") if recipe is not None else recipe_for(folder, inputs)
    samples = images.read_images(folder, names, assumed, inputs)
    found = labels.label(folder, names, replace(labelling, classes=labelling.classes or assumed.classes))
    notes = (*found.notes, note) if note else found.notes
    return replace(samples, labels=found.indices, class_list=found.class_list, notes=notes)


def _without(recipe: Recipe | None, samples: Samples) -> Samples:
    if recipe is None:
        return samples
    note = f"recipe {recipe.name} is not applied to {samples.source}: arrays are fed as they are"
    return replace(samples, notes=(*samples.notes, note))
