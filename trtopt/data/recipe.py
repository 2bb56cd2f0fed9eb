"""Recipes: how an image or a text becomes a model's input. A recipe is a TOML file with an [image] or a [text] table.

    classes = "classes.txt"     # names of the classes, in the order of the scores: a file (see `classes`), or a list

    [image]
    resize = "shorter:256"      # the shorter side; or [height, width]; left out: not resized
    crop = [224, 224]           # height and width, from the centre; left out: not cropped
    interpolation = "bilinear"  # nearest, box, bilinear, hamming, bicubic, lanczos
    color = "RGB"               # RGB, BGR, gray
    layout = "NCHW"             # NCHW, NHWC
    scale = 0.00392156862745098 # multiplied to each pixel (0 to 255), before mean and std
    mean = [0.485, 0.456, 0.406]
    std = [0.229, 0.224, 0.225] # input = (pixel * scale - mean) / std, channels in the order of `color`

    [text]
    tokenizer = "tokenizer.json"
    max_length = 128
    padding = "max_length"      # or "none"

What is not stated is not done. Touches: reads recipe files.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from trtopt.data.classes import Classes, from_list, read_classes
from trtopt.errors import DataError, UsageError
from trtopt.requires import require
from trtopt.types import TensorSpec

Color = Literal["RGB", "BGR", "gray"]
Layout = Literal["NCHW", "NHWC"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Padding = Literal["max_length", "none"]

FILE_NAME = "recipe.toml"
"""A recipe of this name inside a folder of images belongs to them."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SCALE = 1 / 255


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecipe:
    """How an image becomes an array; see the module's text for each field.

    `resize` is the length of the shorter side, or (height, width). `mean` and `std` are empty, or have one value, or
    one for each channel. EXIF orientation is not applied, as in torchvision.
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
            parts.append(f"shorter side to {self.resize}" if isinstance(self.resize, int) else f"to {_by(self.resize)}")
        if self.crop:
            parts.append(f"centre crop {_by(self.crop)}")
        parts.append(f"pixel * {self.scale:.6g}")
        parts += [f"mean {list(self.mean)}"] if self.mean else []
        parts += [f"std {list(self.std)}"] if self.std else []
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRecipe:
    """How a text becomes token ids: the tokenizer file, the length in tokens, whether to pad to it."""

    tokenizer: Path
    max_length: int
    padding: Padding = "max_length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A recipe: `name` says where it is from."""

    name: str
    image: ImageRecipe | None = None
    text: TextRecipe | None = None
    classes: Classes | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the settings (not of the name, the classes or the tokenizer file)."""
        text = (self.text.max_length, self.text.padding) if self.text else None
        return hashlib.sha256(repr((self.image, text)).encode()).hexdigest()


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Return the recipe of that file, or the one of that name that comes with trtopt (imagenet, grayscale, bert).

    A tokenizer is looked for beside a recipe file, and in the current folder for a recipe that comes with trtopt.

    Raises:
        UsageError: there is no such recipe, it is not TOML, or a key or a value in it is wrong.
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
            why=f"there are {', '.join(shipped)}",
            fix=f"{_suggest(name, shipped)}Or give the path of a .toml file",
        )
    return parse_recipe(_read(shipped[name]), name, Path())


def recipe_for(folder: Path, inputs: tuple[TensorSpec, ...]) -> tuple[Recipe, str]:
    """Return the recipe for a folder of images when the user named none, and a sentence that says which one it is.

    It is the folder's `recipe.toml`; else, for an input of rank 4 with 1 or 3 channels and a fixed height and width, a
    common one: ImageNet's for 3 channels (the shorter side to 256/224 of the size, centre crop, mean and std, as in
    torchvision's reference weights), 0 to 1 for 1 channel, untouched pixels for a uint8 input.

    Raises:
        DataError: the input is not image-shaped, or its height or width is dynamic.
        UsageError: the folder's recipe is wrong.
    """
    if (folder / FILE_NAME).is_file():
        return load_recipe(folder / FILE_NAME), f"images are preprocessed with {folder / FILE_NAME}"
    spec = inputs[0]
    wanted = f"input {spec.name} is {spec.dtype} [{', '.join(map(str, spec.shape))}]"
    nchw = len(spec.shape) == 4 and spec.shape[1] in (1, 3)
    if not nchw and (len(spec.shape) != 4 or spec.shape[3] not in (1, 3)):
        raise DataError(
            f"{folder}: images do not fit the model",
            why=f"{wanted}, which is not [batch, channels, height, width] with 1 or 3 channels",
            fix="Give arrays (.npy, .npz), or say how with --recipe",
        )
    channels, h, w = spec.shape[1:] if nchw else (spec.shape[3], *spec.shape[1:3])
    if not isinstance(h, int) or not isinstance(w, int):
        raise DataError(
            f"{folder}: the size of the images is not known",
            why=f"{wanted}, so its height or width is dynamic",
            fix="Say how to resize with --recipe",
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
    return Recipe(name="default", image=image), (
        f"no recipe was given, so this one is assumed for images: {image}; if the model was trained otherwise, "
        "its results are wrong: say how with --recipe"
    )


def parse_recipe(table: Mapping[str, Any], name: str, folder: Path) -> Recipe:
    """Return the recipe that a parsed TOML file states; relative paths are taken from `folder`.

    Raises:
        UsageError: a key or a value is wrong.
    """
    _known(table, ("image", "text", "classes"), name, "table or key")
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
    _known(table, tuple(ImageRecipe.__dataclass_fields__), where, "key")
    color = cast(Color, _one_of(table, "color", get_args(Color), where))
    scale = _numbers(table.get("scale", 1.0), "scale", 1, where)
    recipe = ImageRecipe(
        resize=_resize(table.get("resize", "none"), where),
        crop=_size(table.get("crop", "none"), "crop", where),
        interpolation=cast(Interpolation, _one_of(table, "interpolation", get_args(Interpolation), where, "bilinear")),
        color=color,
        layout=cast(Layout, _one_of(table, "layout", get_args(Layout), where)),
        scale=scale[0],
        mean=_numbers(table.get("mean", []), "mean", 1 if color == "gray" else 3, where),
        std=_numbers(table.get("std", []), "std", 1 if color == "gray" else 3, where),
    )
    if scale[0] == 0 or 0 in recipe.std:
        raise UsageError(f"{where}: scale and std must not be 0")
    return recipe


def _text(table: Mapping[str, Any], where: str, folder: Path) -> TextRecipe:
    _known(table, tuple(TextRecipe.__dataclass_fields__), where, "key")
    tokenizer, length = table.get("tokenizer"), table.get("max_length")
    if not isinstance(tokenizer, str) or not tokenizer:
        raise UsageError(f"{where}: tokenizer must be the path of a tokenizer.json")
    if type(length) is not int or length < 1:
        raise UsageError(f"{where}: max_length must be a number of tokens, 1 or more")
    padding = cast(Padding, _one_of(table, "padding", get_args(Padding), where))
    return TextRecipe(tokenizer=folder / tokenizer, max_length=length, padding=padding)


def _resize(value: Any, where: str) -> int | tuple[int, int] | None:
    if isinstance(value, str) and value.startswith("shorter:"):
        side = value.removeprefix("shorter:")
        if not (side.isascii() and side.isdigit() and int(side) > 0):
            raise UsageError(f"{where}: resize is {value!r}", fix='Write it as "shorter:256"')
        return int(side)
    return _size(value, "resize", where)


def _size(value: Any, key: str, where: str) -> tuple[int, int] | None:
    if value == "none":
        return None
    if isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value):
        return value[0], value[1]
    also = ' or "shorter:256"' if key == "resize" else ""
    raise UsageError(f"{where}: {key} is {value!r}", fix=f'Write it as [height, width]{also} or "none"')


def _numbers(value: Any, key: str, count: int, where: str) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value]
    good = all(type(x) in (int, float) and math.isfinite(x) for x in values)
    if not good or len(values) not in {0, 1, count} or (key == "scale" and not values):
        many = f" or a list of {count}" if count > 1 else ""
        raise UsageError(f"{where}: {key} is {value!r}", why=f"it must be one finite number{many}")
    return tuple(float(x) for x in values)


def _one_of(table: Mapping[str, Any], key: str, allowed: tuple[str, ...], where: str, default: str = "") -> str:
    value = table.get(key, default or allowed[0])
    if value not in allowed:
        raise UsageError(f"{where}: {key} is {value!r}", why=f"it must be one of {', '.join(allowed)}")
    return cast(str, value)


def _known(table: Mapping[str, Any], allowed: tuple[str, ...], where: str, kind: str) -> None:
    for key in table:
        if key not in allowed:
            fix = f"{_suggest(key, allowed)}There are {', '.join(allowed)}"
            fix = "Write it above the first table" if kind == "key" and key == "classes" else fix
            raise UsageError(f"{where}: unknown {kind} {key}", fix=fix)


def _suggest(word: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"Did you mean {near[0]}? " if near else ""


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _read(path: Path) -> dict[str, Any]:
    toml = require("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        return cast(dict[str, Any], toml.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as TOML", why=str(error)) from error


def _shipped_folder() -> Path:
    packaged = Path(__file__).parent / "recipes"
    # In a checkout the recipes are where users look for them; the wheel carries a copy inside the package.
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "calibration" / "recipes"
