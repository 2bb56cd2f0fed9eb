"""Calibration and evaluation data: a folder, a file or a function, read as samples that fit the model.

`open_dataset` is the only entry point.

Touches: reads the user's data; runs code only for a `package.module:function`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trtopt.data import arrays, images, labels, python, text
from trtopt.data.classes import read_classes
from trtopt.data.dataset import Batch, Dataset, batches
from trtopt.data.fitting import recipe_for
from trtopt.data.given import Given, read_given
from trtopt.data.labels import Labelling
from trtopt.data.recipe import Recipe, load_recipe
from trtopt.data.sample import Bad, Samples, at_most, to_dataset
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
    source: str | Given,
    inputs: tuple[TensorSpec, ...],
    *,
    recipe: Recipe | None = None,
    labelling: Labelling | None = _NO_LABELLING,
    skip_bad: bool = False,
    most: int | None = None,
) -> Dataset:
    """Return the samples of `source`, checked against the model's inputs.

    The reader depends on the source. Each reader's module documents its format:
        a folder of images: `images` and `labels`
        a .npy or .npz file, or a folder of them: `arrays`
        a .jsonl or .parquet file: `text`
        `package.module:function`: `python`

    Names, types and shapes of all samples are checked now, from headers. Values (truncated images, NaN) are checked
    when a sample is loaded.

    Args:
        source: the path, `package.module:function`, or Python objects (`given`).
        inputs: the model's inputs.
        recipe: the preprocessing; by default that of the folder, or one that is assumed from the inputs.
        labelling: class names and labels of images. Its class names take precedence over the recipe's. None is for
            predictions: labels are not read, and the error of a bad sample is raised when it is loaded.
        skip_bad: load every sample once now, leave out the bad ones, and list them in `Dataset.warnings`.
        most: the largest number of samples to use, spread evenly over the source; None for all.

    Raises:
        DataError: `source` does not exist or holds no samples, or a sample or a label does not fit. The message names
            it.
        UsageError: the recipe or the labelling cannot be used for this data.
        MissingDependencyError: the package that reads this data is not installed.
    """
    bad: Bad = "keep" if labelling is None else "skip" if skip_bad else "refuse"
    if isinstance(source, Given):
        samples = _without(recipe, read_given(source, inputs))
        return to_dataset(at_most(samples, most), inputs, bad=bad)
    folder = Path(source)
    try:
        names = images.find(folder) if folder.is_dir() else ()
        if names:
            samples = _read_images(folder, names, inputs, recipe, labelling)
        elif labelling in (None, _NO_LABELLING):
            samples = _read(source, inputs, recipe, skip_bad=bad != "refuse")
        else:
            flag = "--labels" if labelling and labelling.file else "--classes"
            raise UsageError(
                f"{flag} is for a folder of images",
                why=f"{source} is not one",
                fix="Leave it out. Other data contain class indices themselves: an array `labels`, a field `label`",
            )
        return to_dataset(at_most(samples, most), inputs, bad=bad)
    except OSError as error:
        raise DataError(f"{source}: cannot be read", why=str(error)) from error


def _read(source: str, inputs: tuple[TensorSpec, ...], recipe: Recipe | None, *, skip_bad: bool) -> Samples:
    path = Path(source)
    if path.is_dir():
        files = arrays.find(path)
        if not files:
            raise DataError(f"{path}: no samples", why="it contains no images, .npy or .npz", fix=_KINDS)
        return _without(recipe, arrays.read_folder(path, files, inputs, skip_bad=skip_bad))
    suffix = path.suffix.lower()
    if path.is_file() and suffix in text.SUFFIXES:
        return text.read_rows(path, inputs, recipe)
    if path.is_file() and suffix in arrays.SUFFIXES:
        return _without(recipe, arrays.read_file(path, inputs))
    if path.exists():
        raise DataError(f"{source}: unsupported data format", fix=_KINDS)
    if python.is_function(source):
        return _without(recipe, python.read_function(source, inputs))
    raise DataError(f"{source}: no such file or folder", fix=_KINDS)


def _read_images(
    folder: Path,
    names: tuple[str, ...],
    inputs: tuple[TensorSpec, ...],
    recipe: Recipe | None,
    labelling: Labelling | None,
) -> Samples:
    if files := arrays.find(folder):
        raise DataError(
            f"{folder}: contains both images and arrays",
            why=f"{names[0]} and {files[0]}, among others",
            fix="Keep them in separate folders",
        )
    assumed, note, warning = (recipe, "", "") if recipe is not None else recipe_for(folder, inputs)
    samples = images.read_images(folder, names, assumed, inputs)
    labelled = labels.Labels(indices=None)
    if labelling is not None:
        labelled = labels.label(folder, names, replace(labelling, classes=labelling.classes or assumed.classes))
    return replace(
        samples,
        labels=labelled.indices,
        class_list=labelled.class_list,
        shown=replace(samples.shown, names=labelled.names),
        notes=(*labelled.notes, *filter(None, [note])),
        warnings=(*labelled.warnings, *filter(None, [warning])),
    )


def _without(recipe: Recipe | None, samples: Samples) -> Samples:
    """Return the samples, with a warning that a given recipe is not applied to them."""
    if recipe is None:
        return samples
    warning = f"recipe {recipe.name} is not applied to {samples.source}: arrays are used unchanged"
    return replace(samples, warnings=(*samples.warnings, warning))
