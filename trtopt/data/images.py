"""Pictures: a folder of them, with labels when they lie in class subfolders.

Touches: reads picture files. Pillow decodes them; only the formats below are tried, truncated data is an error, and so
is a picture with more pixels than Pillow's guard against decompression bombs allows.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.data.dataset import Array
from trtopt.data.digest import of_files
from trtopt.data.recipe import ImageRecipe, Recipe
from trtopt.data.sample import Header, Samples
from trtopt.errors import DataError, UsageError
from trtopt.types import TensorSpec

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# Named, so that no file makes Pillow try its rarer decoders (EPS starts Ghostscript).
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_TYPES = ("float32", "float16", "float64", "uint8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """The pictures of a folder: names relative to it, sorted; the class index of each, when it has one; remarks."""

    folder: Path
    names: tuple[str, ...]
    labels: tuple[int, ...] | None
    notes: tuple[str, ...]


def find(folder: Path) -> Pictures:
    """Return the folder's pictures, in the order of their names.

    Pictures in subfolders are labelled by the name of the top one: by the number, when all names are numbers, else by
    its place among the sorted names. Hidden files are passed over.

    Raises:
        DataError: some pictures lie in subfolders and some do not.
    """
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    files = (path.relative_to(folder) for path in found)
    names = sorted(path.as_posix() for path in files if not any(part.startswith(".") for part in path.parts))
    classed = [name for name in names if "/" in name]
    if not classed:
        return Pictures(folder=folder, names=tuple(names), labels=None, notes=())
    if len(classed) < len(names):
        loose = next(name for name in names if "/" not in name)
        raise DataError(
            f"{folder}: some pictures lie in class subfolders and some do not",
            why=f"{loose} is in none",
            fix="Sort all of them into subfolders, or none",
        )
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    numbered = all(name.isascii() and name.isdigit() for name in classes)
    if len(classes) == 1 and not numbered:
        note = f"the pictures lie in one subfolder, {classes[0]}, which is not taken for a label"
        return Pictures(folder=folder, names=tuple(names), labels=None, notes=(note,))
    index = {name: int(name) if numbered else place for place, name in enumerate(classes)}
    shown = ", ".join(f"{place}={name}" for name, place in list(index.items())[:3])
    note = f"labels are the places of the {len(classes)} subfolders in sorted order ({shown}, ...)"
    labels = tuple(index[name.partition("/")[0]] for name in names)
    return Pictures(folder=folder, names=tuple(names), labels=labels, notes=() if numbered else (note,))


def read_pictures(pictures: Pictures, recipe: Recipe, inputs: tuple[TensorSpec, ...]) -> Samples:
    """Return the pictures as samples of the model's one input, made by the recipe.

    Raises:
        DataError: the model has several inputs, or one of a type that pictures cannot have.
        UsageError: the recipe has no [image] table, or it does arithmetic for an input of whole numbers.
    """
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise DataError(
            f"{pictures.folder}: pictures feed one input",
            why=f"the model has {len(inputs)}: {names}",
            fix="Give a .npz with an array for each input",
        )
    name, dtype = inputs[0].name, inputs[0].dtype
    if dtype not in _TYPES:
        raise DataError(f"{pictures.folder}: pictures cannot feed input {name}", why=f"it is {dtype}")
    how = recipe.image
    if how is None:
        raise UsageError(f"recipe {recipe.name} has no [image] table", why=f"{pictures.folder} holds pictures")
    if dtype == "uint8" and (how.scale != 1 or any(how.mean) or any(x != 1 for x in how.std)):
        raise UsageError(
            f"recipe {recipe.name} states scale, mean or std",
            why=f"input {name} is uint8, so the model takes untouched pixels",
        )
    ids = pictures.names

    def peek(i: int) -> Mapping[str, Header]:
        return {name: Header(dtype, output_shape(header_size(pictures.folder / ids[i]), how, ids[i]))}

    def read(i: int) -> dict[str, Array]:
        return {name: to_array(decode(pictures.folder / ids[i]), how).astype(dtype, copy=False)}

    return Samples(
        source=str(pictures.folder),
        digest=of_files(pictures.folder, ids, recipe.digest),
        ids=ids,
        peek=peek,
        read=read,
        labels=pictures.labels,
        notes=pictures.notes,
    )


def header_size(path: Path) -> tuple[int, int]:
    """Return (height, width) from the file's header, without decoding it.

    Raises:
        DataError: it is no picture, has too many pixels, or has more than 8 bits a channel.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as picture:
                mode, (width, height) = picture.mode, picture.size
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: too many pixels", why=str(error), fix="Make the picture smaller") from error
    except Exception as error:
        raise _unreadable(path, error) from error
    if mode.startswith(("I", "F")):
        # Pillow would clip 16 bits to 8 when it converts.
        raise DataError(f"{path}: more than 8 bits a channel (mode {mode})", fix="Convert it to 8 bits, or give .npy")
    return height, width


def decode(path: Path) -> Picture:
    """Return the whole picture in memory.

    Raises:
        DataError: it is corrupt or truncated.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=_FORMATS) as picture:
            picture.load()
            # A palette with transparency goes through RGBA, or Pillow warns; the transparency is then dropped.
            whole: Picture = picture.convert("RGBA") if "transparency" in picture.info else picture.copy()
            return whole
    except Exception as error:
        raise _unreadable(path, error) from error


def to_array(picture: Picture, how: ImageRecipe) -> npt.NDArray[np.float32] | npt.NDArray[np.uint8]:
    """Return the picture as [c, h, w] or [h, w, c]: uint8 where the recipe has no arithmetic, else float32."""
    from PIL import Image

    picture = picture.convert("L" if how.color == "gray" else "RGB")
    height, width = _resized((picture.height, picture.width), how)
    if (height, width) != (picture.height, picture.width):
        picture = picture.resize((width, height), Image.Resampling[how.interpolation.upper()])
    if how.crop:
        top, left = round((height - how.crop[0]) / 2), round((width - how.crop[1]) / 2)
        picture = picture.crop((left, top, left + how.crop[1], top + how.crop[0]))
    pixels: npt.NDArray[np.uint8] = np.asarray(picture)
    pixels = pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels
    pixels = pixels[:, :, ::-1] if how.color == "BGR" else pixels
    pixels = pixels.transpose(2, 0, 1) if how.layout == "NCHW" else pixels
    if how.scale == 1 and not how.mean and not how.std:
        return np.ascontiguousarray(pixels)
    aligned = (-1, 1, 1) if how.layout == "NCHW" else (-1,)
    values: npt.NDArray[np.float32] = np.multiply(pixels, np.float32(how.scale), order="C", dtype=np.float32)
    if how.mean:
        values -= np.asarray(how.mean, np.float32).reshape(aligned)
    if how.std:
        values /= np.asarray(how.std, np.float32).reshape(aligned)
    return values


def output_shape(size: tuple[int, int], how: ImageRecipe, name: str) -> tuple[int, ...]:
    """Return the shape that `to_array` makes of a picture of that (height, width).

    Raises:
        DataError: the crop is larger than the picture.
    """
    height, width = _resized(size, how)
    if how.crop and (how.crop[0] > height or how.crop[1] > width):
        raise DataError(
            f"{name}: {height}x{width} is too small",
            why=f"the recipe crops {how.crop[0]}x{how.crop[1]}",
            fix="Let the recipe resize first",
        )
    height, width = how.crop or (height, width)
    channels = 1 if how.color == "gray" else 3
    return (channels, height, width) if how.layout == "NCHW" else (height, width, channels)


def _resized(size: tuple[int, int], how: ImageRecipe) -> tuple[int, int]:
    height, width = size
    if isinstance(how.resize, int):
        # torchvision's rule: the longer side is rounded down.
        if height <= width:
            return how.resize, how.resize * width // height
        return how.resize * height // width, how.resize
    return how.resize or size


def _unreadable(path: Path, error: Exception) -> DataError:
    why = " ".join(str(error).split())[:200] or type(error).__name__
    fix = "Remove it, or leave such samples out with --skip-bad"
    return DataError(f"{path}: cannot be read as a picture", why=why, fix=fix)
