"""Folders of images. The module `labels` reads the classes of the images.

Touches: reads image files. Pillow decodes them, in the formats listed below only. Truncated data is an error, and so is
an image with more pixels than Pillow's limit against decompression bombs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.data.checks import Header
from trtopt.data.constants import per_sample
from trtopt.data.dataset import Array, Shown
from trtopt.data.digest import of_files
from trtopt.data.fitting import fitted
from trtopt.data.geometry import Frame, frame
from trtopt.data.recipe import ImageRecipe, Recipe
from trtopt.data.sample import Samples
from trtopt.data.values import suggest
from trtopt.errors import DataError, UsageError
from trtopt.types import TensorSpec

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

FORMATS = {
    ".bmp": "BMP",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".pgm": "PPM",
    ".png": "PNG",
    ".ppm": "PPM",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
SUFFIXES = frozenset(FORMATS)
_MOST_PIXELS = 1 << 28
_TYPES = ("float32", "float16", "float64", "uint8")


def find(folder: Path) -> tuple[str, ...]:
    """Return the sorted names, relative to the folder, of all images in it and its subfolders, without hidden files."""
    images = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    files = (path.relative_to(folder) for path in images)
    return tuple(sorted(path.as_posix() for path in files if not any(part.startswith(".") for part in path.parts)))


def read_images(folder: Path, ids: tuple[str, ...], recipe: Recipe, inputs: tuple[TensorSpec, ...]) -> Samples:
    """Return the named images as samples, preprocessed with the recipe, which feeds the other inputs.

    Raises:
        DataError: an input is fed by neither images nor the recipe, or its dtype does not fit images.
        UsageError: the recipe has no [image] table, cannot be fitted to the model, or scales or normalizes pixels for a
            uint8 input.
    """
    if recipe.image is None:
        raise UsageError(f"recipe {recipe.name} has no [image] table", why=f"{folder} contains images")
    spec = _fed(folder, recipe, recipe.image, inputs)
    name, dtype = spec.name, spec.dtype
    if dtype not in _TYPES:
        raise DataError(f"{folder}: images cannot feed input {name}", why=f"it is {dtype}")
    how = fitted(recipe, spec)
    if dtype == "uint8" and (how.scale != 1 or any(how.mean) or any(x != 1 for x in how.std)):
        raise UsageError(
            f"recipe {recipe.name} sets scale, mean or std",
            why=f"input {name} is uint8, so the model takes untouched pixels",
        )
    beside = per_sample(recipe.inputs, {each.name: each for each in inputs}, ids)

    def peek(i: int) -> Mapping[str, Header]:
        others = {other: Header(array.dtype.name, array.shape) for other, array in beside[i].items()}
        return {name: Header(dtype, output_shape(header_size(folder / ids[i]), how, ids[i])), **others}

    def read(i: int) -> dict[str, Array]:
        return {name: to_array(decode(folder / ids[i]), how).astype(dtype, copy=False), **beside[i]}

    return Samples(
        source=str(folder),
        digest=of_files(folder, ids, replace(recipe, image=how).digest),
        ids=ids,
        peek=peek,
        read=read,
        shown=Shown(image=how),
    )


def _fed(folder: Path, recipe: Recipe, image: ImageRecipe, inputs: tuple[TensorSpec, ...]) -> TensorSpec:
    """Return the input that the images feed."""
    names = [spec.name for spec in inputs]
    unknown = [name for name in (*recipe.inputs, *filter(None, [image.input])) if name not in names]
    if unknown:
        near = suggest(unknown[0], tuple(names))
        raise UsageError(
            f"recipe {recipe.name}: the model has no input {unknown[0]}", fix=f"{near}Its inputs are {', '.join(names)}"
        )
    free = [spec for spec in inputs if spec.name not in recipe.inputs]
    if len(free) != 1 or image.input not in ("", free[0].name):
        listed = ", ".join(spec.name for spec in free)
        raise DataError(
            f"{folder}: images feed one input",
            why=f"the model has {len(inputs)}: {', '.join(names)}" + (f"; left are {listed}" if recipe.inputs else ""),
            fix="Give the others in the recipe ([inputs.NAME]), or a .npz with an array for each input",
        )
    return free[0]


def _formats(path: Path) -> tuple[str, ...]:
    """Return the formats to try, the one of the file's suffix first.

    An explicit list keeps Pillow from trying its rarer decoders (EPS starts Ghostscript). Pillow imports all of its
    decoders when it comes to a format that it has not loaded yet, and it loads that of the suffix.
    """
    return tuple(dict.fromkeys((FORMATS.get(path.suffix.lower(), "JPEG"), *FORMATS.values())))


def header_size(path: Path) -> tuple[int, int]:
    """Return (height, width) from the file's header, without decoding the image.

    Raises:
        DataError: the file is not an image, or the image has too many pixels or more than 8 bits per channel.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_formats(path)) as image:
                mode, (width, height) = image.mode, image.size
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: too many pixels", why=str(error), fix="Make the image smaller") from error
    except Exception as error:
        raise _unreadable(path, error) from error
    if mode.startswith(("I", "F")):
        # Pillow would clip the values to 8 bits in its conversion to RGB.
        raise DataError(f"{path}: more than 8 bits per channel (mode {mode})", fix="Convert it to 8 bits, or give .npy")
    return height, width


def decode(path: Path) -> PilImage:
    """Return the fully decoded image.

    Raises:
        DataError: the file is corrupt or truncated.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=_formats(path)) as image:
            image.load()
            # Pillow warns when a palette with transparency is converted directly to RGB, so it becomes RGBA first.
            # `to_array` then drops the transparency.
            decoded: PilImage = image.convert("RGBA") if "transparency" in image.info else image.copy()
            return decoded
    except Exception as error:
        raise _unreadable(path, error) from error


def to_array(image: PilImage, how: ImageRecipe) -> npt.NDArray[np.float32] | npt.NDArray[np.uint8]:
    """Return the image as an array [c, h, w] or [h, w, c], preprocessed with the recipe.

    The dtype is uint8 if the recipe neither scales nor normalizes pixels, and float32 otherwise.
    """
    from PIL import Image

    image = image.convert("L" if how.color == "gray" else "RGB")
    placed = frame((image.height, image.width), how)
    if placed.resized != (image.height, image.width):
        image = image.resize(placed.resized[::-1], Image.Resampling[how.interpolation.upper()])
    if placed.canvas != placed.resized:
        image = padded(image, placed, how)
    if placed.crop != placed.canvas:
        (top, left), (height, width) = placed.corner, placed.crop
        image = image.crop((left, top, left + width, top + height))
    pixels: npt.NDArray[np.uint8] = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[:, :, np.newaxis]
    if how.color == "BGR":
        pixels = pixels[:, :, ::-1]
    if how.layout == "NCHW":
        pixels = pixels.transpose(2, 0, 1)
    if how.scale == 1 and not how.mean and not how.std:
        return np.ascontiguousarray(pixels)
    # The shape that broadcasts one value per channel over the pixels.
    per_channel = (-1, 1, 1) if how.layout == "NCHW" else (-1,)
    values: npt.NDArray[np.float32] = np.multiply(pixels, np.float32(how.scale), order="C", dtype=np.float32)
    if how.mean:
        values -= np.asarray(how.mean, np.float32).reshape(per_channel)
    if how.std:
        values /= np.asarray(how.std, np.float32).reshape(per_channel)
    return values


def output_shape(size: tuple[int, int], how: ImageRecipe, name: str) -> tuple[int, ...]:
    """Return the shape of the array that `to_array` returns for an image of `size` (height, width).

    Raises:
        DataError: the crop is larger than the image.
    """
    placed = frame(size, how)
    if not placed.fits:
        height, width = placed.canvas
        raise DataError(
            f"{name}: {height}x{width} is too small",
            why=f"the recipe crops {placed.crop[0]}x{placed.crop[1]}",
            fix='Add a resize to the recipe, such as resize = "input"',
        )
    height, width = placed.crop
    if height * width > _MOST_PIXELS:
        raise DataError(f"{name}: {height}x{width} has too many pixels", fix="Make the resize of the recipe smaller")
    channels = 1 if how.color == "gray" else 3
    return (channels, height, width) if how.layout == "NCHW" else (height, width, channels)


def padded(image: PilImage, placed: Frame, how: ImageRecipe) -> PilImage:
    """Return the image in its canvas."""
    from PIL import Image

    channels = len(image.getbands())
    values = how.pad_value * (channels // len(how.pad_value))
    values = values[::-1] if how.color == "BGR" else values  # the channels are swapped later
    canvas = Image.new(image.mode, placed.canvas[::-1], values if channels > 1 else values[0])
    canvas.paste(image, placed.offset[::-1])
    return canvas


def _unreadable(path: Path, error: Exception) -> DataError:
    why = " ".join(str(error).split())[:200] or type(error).__name__
    fix = "Remove it, or leave such samples out with --skip-bad"
    return DataError(f"{path}: cannot be read as an image", why=why, fix=fix)
