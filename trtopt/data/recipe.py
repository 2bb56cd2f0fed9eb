"""Recipes for preprocessing images or text into a model's input.

A recipe is a TOML file with an [image] or a [text] table:

    classes = "classes.txt"     # class names in the order of the scores: a file (see `classes`) or a list

    [image]
    resize = "shorter:256"      # length of the shorter side, or [height, width]; default: no resize
    crop = [224, 224]           # height and width of a centre crop; default: no crop
    interpolation = "bilinear"  # nearest, box, bilinear, hamming, bicubic, lanczos
    color = "RGB"               # RGB, BGR, gray
    layout = "NCHW"             # NCHW, NHWC
    scale = 0.00392156862745098 # factor for each pixel (0 to 255), applied before mean and std
    mean = [0.485, 0.456, 0.406]
    std = [0.229, 0.224, 0.225] # input = (pixel * scale - mean) / std, channels in the order of `color`

    [text]
    tokenizer = "tokenizer.json"
    max_length = 128
    padding = "max_length"      # or "none"

A step that is not listed is not done.

Touches: reads recipe files.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from trtopt.data.classes import Classes, from_list, read_classes
from trtopt.data.values import by, check_keys, numbers, one_of, resize, size, suggest
from trtopt.errors import DataError, UsageError
from trtopt.requires import require
from trtopt.types import TensorSpec

Color = Literal["RGB", "BGR", "gray"]
Layout = Literal["NCHW", "NHWC"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Padding = Literal["max_length", "none"]

FILE_NAME = "recipe.toml"
"""Name of the recipe file inside a folder of images."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SCALE = 1 / 255


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecipe:
    """Preprocessing of an image into an array. The module's docstring describes each field.

    `resize` is the length of the shorter side, or (height, width). `mean` and `std` are empty, or have one value for
    all channels or one per channel. EXIF orientation is ignored, as in torchvision.
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"
    color: Color = "RGB"
    layout: Layout = "NCHW"
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __str__(self) -> str:
        parts: list[str] = [self.color, self.layout]
        if self.resize is not None:
            parts.append(f"shorter side to {self.resize}" if isinstance(self.resize, int) else f"to {by(self.resize)}")
        if self.crop:
            parts.append(f"centre crop {by(self.crop)}")
        parts.append(f"pixel * {self.scale:.6g}")
        parts += [f"mean {list(self.mean)}"] if self.mean else []
        parts += [f"std {list(self.std)}"] if self.std else []
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRecipe:
    """Tokenization of a text: the tokenizer file, the maximum length in tokens, and whether to pad to it."""

    tokenizer: Path
    max_length: int
    padding: Padding = "max_length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A recipe, with the name or path that it was loaded from."""

    name: str
    image: ImageRecipe | None = None
    text: TextRecipe | None = None
    classes: Classes | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the settings, without the name, the classes and the tokenizer file."""
        text = (self.text.max_length, self.text.padding) if self.text else None
        return hashlib.sha256(repr((self.image, text)).encode()).hexdigest()


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Return the recipe in a file, or one of the recipes that come with trtopt (imagenet, grayscale, bert).

    The path of a tokenizer is relative to the recipe file, or to the current folder for a recipe of trtopt.

    Raises:
        UsageError: the recipe does not exist, is not TOML, or has a wrong key or value.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise UsageError(f"{path}: no such recipe file")
        return parse_recipe(_read(path), str(path), path.parent)
    shipped = {file.stem: file for file in sorted(_shipped_folder().glob("*.toml"))}
    name = str(name_or_path)
    if name not in shipped:
        raise UsageError(
            f"no recipe is named {name}",
            why=f"the recipes of trtopt are {', '.join(shipped)}",
            fix=f"{suggest(name, shipped)}Or give the path of a .toml file",
        )
    return parse_recipe(_read(shipped[name]), name, Path())


def recipe_for(folder: Path, inputs: tuple[TensorSpec, ...]) -> tuple[Recipe, str, str]:
    """Return the default recipe for a folder of images, and a note or else a warning that describes it.

    A `recipe.toml` in the folder is used if there is one. Otherwise the recipe is assumed from the model's input, which
    must have rank 4, 1 or 3 channels, and a fixed height and width:
        3 channels: ImageNet's, as in torchvision's reference weights (shorter side resized to 256/224 of the size,
            centre crop, mean and std). An oblong input is resized without a crop.
        1 channel: resized, pixels scaled to [0, 1].
        uint8: as above, without scaling or normalization.

    Raises:
        DataError: the input does not have the shape of an image, or its height or width is dynamic.
        UsageError: the folder's recipe is wrong.
    """
    if (folder / FILE_NAME).is_file():
        return load_recipe(folder / FILE_NAME), f"images are preprocessed with {folder / FILE_NAME}", ""
    spec = inputs[0]
    wanted = f"input {spec.name} is {spec.dtype} [{', '.join(map(str, spec.shape))}]"
    nchw = len(spec.shape) == 4 and spec.shape[1] in (1, 3)
    if not nchw and (len(spec.shape) != 4 or spec.shape[3] not in (1, 3)):
        raise DataError(
            f"{folder}: images do not fit the model",
            why=f"{wanted}, which is not [batch, channels, height, width] with 1 or 3 channels",
            fix="Give arrays (.npy, .npz), or a recipe with --recipe",
        )
    channels, h, w = spec.shape[1:] if nchw else (spec.shape[3], *spec.shape[1:3])
    if not isinstance(h, int) or not isinstance(w, int):
        raise DataError(
            f"{folder}: the size of the images is unknown",
            why=f"{wanted}, so its height or width is dynamic",
            fix="Give a recipe with a resize (--recipe)",
        )
    raw = spec.dtype == "uint8"
    image = ImageRecipe(
        resize=(h, w) if h != w or channels == 1 else round(h * 256 / 224),
        crop=(h, w) if h == w and channels == 3 else None,
        color="gray" if channels == 1 else "RGB",
        layout="NCHW" if nchw else "NHWC",
        scale=1.0 if raw else _SCALE,
        mean=() if raw or channels == 1 else _MEAN,
        std=() if raw or channels == 1 else _STD,
    )
    return (
        Recipe(name="default", image=image),
        "",
        (
            f"no recipe was given, so this one is assumed for images: {image}; if the model was trained with another, "
            "its results are wrong: give that one with --recipe"
        ),
    )


def parse_recipe(table: Mapping[str, Any], name: str, folder: Path) -> Recipe:
    """Return the recipe in a parsed TOML file; relative paths in it are resolved from `folder`.

    Raises:
        UsageError: a key or a value is wrong.
    """
    check_keys(table, ("image", "text", "classes"), name, "table or key")
    if not table:
        raise UsageError(f"{name}: the recipe is empty", why="it needs an [image] or a [text] table")
    parts = {key: table.get(key) for key in ("image", "text")}
    for key, part in parts.items():
        if part is not None and not isinstance(part, dict):
            raise UsageError(f"{name}: {key} is not a table", fix=f"Write [{key}] on a line of its own")
    image, text = parts["image"], parts["text"]
    return Recipe(
        name=name,
        image=None if image is None else _image(image, f"{name} [image]"),
        text=None if text is None else _text(text, f"{name} [text]", folder),
        classes=_classes(table["classes"], name, folder) if "classes" in table else None,
    )


def _classes(value: Any, name: str, folder: Path) -> Classes:
    if isinstance(value, list):
        return from_list(value, f"classes of {name}")
    if not isinstance(value, str):
        raise UsageError(f"{name}: classes is {value!r}", fix="Write a list of names, or the path of a file of names")
    return read_classes(folder / value)


def _image(table: Mapping[str, Any], where: str) -> ImageRecipe:
    check_keys(table, tuple(ImageRecipe.__dataclass_fields__), where, "key")
    color = cast(Color, one_of(table, "color", get_args(Color), where))
    scale = numbers(table.get("scale", 1.0), "scale", 1, where)
    recipe = ImageRecipe(
        resize=resize(table.get("resize", "none"), where),
        crop=size(table.get("crop", "none"), "crop", where),
        interpolation=cast(Interpolation, one_of(table, "interpolation", get_args(Interpolation), where, "bilinear")),
        color=color,
        layout=cast(Layout, one_of(table, "layout", get_args(Layout), where)),
        scale=scale[0],
        mean=numbers(table.get("mean", []), "mean", 1 if color == "gray" else 3, where),
        std=numbers(table.get("std", []), "std", 1 if color == "gray" else 3, where),
    )
    if scale[0] == 0 or 0 in recipe.std:
        raise UsageError(f"{where}: scale and std must not be 0")
    return recipe


def _text(table: Mapping[str, Any], where: str, folder: Path) -> TextRecipe:
    check_keys(table, tuple(TextRecipe.__dataclass_fields__), where, "key")
    tokenizer, length = table.get("tokenizer"), table.get("max_length")
    if not isinstance(tokenizer, str) or not tokenizer:
        raise UsageError(f"{where}: tokenizer must be the path of a tokenizer.json")
    if type(length) is not int or length < 1:
        raise UsageError(f"{where}: max_length must be a number of tokens, at least 1")
    padding = cast(Padding, one_of(table, "padding", get_args(Padding), where))
    return TextRecipe(tokenizer=folder / tokenizer, max_length=length, padding=padding)


def _read(path: Path) -> dict[str, Any]:
    toml = require("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        return cast(dict[str, Any], toml.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as TOML", why=str(error)) from error


def _shipped_folder() -> Path:
    packaged = Path(__file__).parent / "recipes"
    # The wheel has a copy of the recipes inside the package; a checkout has only the top-level folder.
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "calibration" / "recipes"
