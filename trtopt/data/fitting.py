"""Recipes fitted to a model's input: sizes and layouts that a recipe takes from it, and recipes that are assumed.

Touches: reads recipe files.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from trtopt.data.recipe import FILE_NAME, ImageRecipe, Recipe, Side, load_recipe
from trtopt.errors import DataError, UsageError
from trtopt.types import TensorSpec


def recipe_for(folder: Path, inputs: tuple[TensorSpec, ...]) -> tuple[Recipe, str, str]:
    """Return the default recipe for a folder of images, and a note or else a warning that describes it.

    A `recipe.toml` in the folder is used if there is one. Otherwise a recipe of trtopt is assumed from the model's
    input, which must have rank 4, 1 or 3 channels, and a fixed height and width:
        3 channels: `imagenet`; `imagenet-stretch` for an oblong input
        1 channel: `grayscale`
        uint8: `raw`, `raw-stretch` or `raw-gray`, which are the same without scaling or normalization

    Raises:
        DataError: the input does not have the shape of an image, or its height or width is dynamic.
        UsageError: the folder's recipe is wrong.
    """
    if (folder / FILE_NAME).is_file():
        return load_recipe(folder / FILE_NAME), f"images are preprocessed with {folder / FILE_NAME}", ""
    spec = inputs[0]
    wanted = f"input {spec.name} is {_text(spec)}"
    layout = layout_of(spec)
    if not layout:
        raise DataError(
            f"{folder}: images do not fit the model",
            why=f"{wanted}, which is not [batch, channels, height, width] with 1 or 3 channels",
            fix="Give arrays (.npy, .npz), or a recipe with --recipe",
        )
    size = _size(spec, layout)
    if size is None:
        raise DataError(
            f"{folder}: the size of the images is unknown",
            why=f"{wanted}, so its height or width is dynamic",
            fix="Give a recipe with a resize (--recipe)",
        )
    gray = spec.shape[1 if layout == "NCHW" else 3] == 1
    raw = spec.dtype == "uint8"
    stretch = "-stretch" if size[0] != size[1] else ""
    name = ("raw-gray" if raw else "grayscale") if gray else f"{'raw' if raw else 'imagenet'}{stretch}"
    recipe = load_recipe(name)
    return (
        recipe,
        "",
        (
            f"no recipe was given, so {name} is assumed for images: {fitted(recipe, spec)}; if the model was trained "
            f"with another, its results are wrong: give that one with --recipe, or --recipe {name} if this is right"
        ),
    )


def fitted(recipe: Recipe, spec: TensorSpec) -> ImageRecipe:
    """Return the image recipe with the sizes and the layout that it takes from the model's input.

    Raises:
        UsageError: the recipe has no [image] table, takes what the input does not tell, or makes another size.
    """
    image = recipe.image
    if image is None:
        raise UsageError(f"recipe {recipe.name} has no [image] table")
    if image.layout == "input":
        layout = layout_of(spec)
        if not layout:
            raise UsageError(
                f"recipe {recipe.name}: layout is that of the input",
                why=f"{spec.name} is {_text(spec)}, which is not an image of 1 or 3 channels",
                fix='Write layout = "NCHW" or "NHWC" in a copy of the recipe',
            )
        image = replace(image, layout=layout)
    size = _size(spec, image.layout) if layout_of(spec) in ("", image.layout) else None
    needed = "input" in (image.resize, image.crop) or (isinstance(image.resize, Side) and image.resize.of > 0)
    if needed and size is None:
        raise UsageError(
            f"recipe {recipe.name} takes the size of input {spec.name}",
            why=f"it is {_text(spec)}: its height or width is dynamic, or it is not {image.layout}",
            fix="Write resize = [height, width] and layout in a copy of the recipe, or fix the size with --shape",
        )
    if size is not None:
        image = _sized(image, size)
        _check(recipe, image, spec, size)
    return image


def _sized(image: ImageRecipe, size: tuple[int, int]) -> ImageRecipe:
    if isinstance(image.resize, Side) and image.resize.of:
        inner = min(size) if image.resize.which == "shorter" else max(size)
        side = replace(image.resize, length=max(round(inner * image.resize.length / image.resize.of), 1), of=0)
        image = replace(image, resize=side)
    image = replace(image, resize=size) if image.resize == "input" else image
    return replace(image, crop=size) if image.crop == "input" else image


def _check(recipe: Recipe, image: ImageRecipe, spec: TensorSpec, size: tuple[int, int]) -> None:
    """Refuse a recipe whose images have a fixed size, if it is not the size of the model's input."""
    made = image.crop or (image.resize if image.multiple == 1 else None)
    if not isinstance(made, tuple) or made == size:
        return
    key = "crop" if image.crop else "resize"
    raise UsageError(
        f"recipe {recipe.name} makes images of {made[0]}x{made[1]}",
        why=f"input {spec.name} is {_text(spec)}",
        fix=f'Write {key} = "input" in the recipe to take the size from the model',
    )


def layout_of(spec: TensorSpec) -> Literal["NCHW", "NHWC", ""]:
    """Return `NCHW` or `NHWC` for an input that has the shape of images; empty for any other."""
    if len(spec.shape) != 4:
        return ""
    return "NCHW" if spec.shape[1] in (1, 3) else "NHWC" if spec.shape[3] in (1, 3) else ""


def _size(spec: TensorSpec, layout: str) -> tuple[int, int] | None:
    """Return the (height, width) of an input; None if it is dynamic or the input is not an image."""
    if len(spec.shape) not in (3, 4):
        return None
    sides = spec.shape[-2:] if layout == "NCHW" else spec.shape[-3:-1]
    height, width = sides
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _text(spec: TensorSpec) -> str:
    return f"{spec.dtype} [{', '.join(map(str, spec.shape))}]"
