"""Recipes for preprocessing images or text into a model's input.

A recipe is a TOML file with an [image] or a [text] table; docs/recipes.md describes every key. A step that is not
listed is not done. What a recipe takes from the model's input is filled in by `fitting`.

Touches: reads recipe files.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from trtopt.data.classes import Classes, from_list, read_classes
from trtopt.data.constants import Constant, parse_inputs
from trtopt.data.values import by, check_keys, numbers, one_of, side, size, suggest
from trtopt.errors import UsageError
from trtopt.requires import require

Color = Literal["RGB", "BGR", "gray"]
Layout = Literal["NCHW", "NHWC", "input"]
Fit = Literal["stretch", "letterbox"]
Place = Literal["center", "top-left"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Padding = Literal["max_length", "none"]

FILE_NAME = "recipe.toml"
"""Name of the recipe file inside a folder of images."""

_MOST_MULTIPLE = 1024


@dataclass(frozen=True, slots=True)
class Side:
    """Length of one side of an image in pixels; with `of`, it is `length / of` times that of the model's input."""

    which: Literal["shorter", "longer"]
    length: int
    of: int = 0

    def __str__(self) -> str:
        length = f"{self.length}/{self.of} of the input's" if self.of else str(self.length)
        return f"{self.which} side to {length}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecipe:
    """Preprocessing of an image into an array: resize, letterbox, padding to a multiple, crop, colours, scaling.

    EXIF orientation is ignored, as in torchvision.

    Attributes:
        resize: (height, width), the length of a side, or "input" for the size of the model's input.
        fit: how an image comes to the size of `resize`: stretched, or with its aspect ratio and padding.
        multiple: the image is padded so that both sides are multiples of this number.
        pad_value: value of padding from 0 to 255, for all channels or one per channel in the order of `color`.
        place: where the image is in its padding.
        crop: (height, width) cut out of the centre, or "input".
        interpolation: one of pillow's filters.
        color: order of the channels.
        layout: order of the axes, or "input".
        scale: factor of each pixel (0 to 255), applied before mean and std.
        mean: empty, or one value for all channels, or one per channel.
        std: as `mean`; the array is (pixel * scale - mean) / std.
        input: name of the input that images feed; empty if there is only one that is not in [inputs].
    """

    resize: Side | tuple[int, int] | Literal["input"] | None = None
    fit: Fit = "stretch"
    multiple: int = 1
    pad_value: tuple[int, ...] = (0,)
    place: Place = "center"
    crop: tuple[int, int] | Literal["input"] | None = None
    interpolation: Interpolation = "bilinear"
    color: Color = "RGB"
    layout: Layout = "NCHW"
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    input: str = ""

    def __str__(self) -> str:
        parts: list[str] = [self.color, self.layout]
        if self.resize is not None:
            parts.append(str(self.resize) if isinstance(self.resize, Side) else f"to {_size_text(self.resize)}")
        if self.fit == "letterbox":
            parts.append(f"letterbox ({self.place}) padded with {_values_text(self.pad_value)}")
        if self.multiple > 1:
            parts.append(f"padded to a multiple of {self.multiple} with {_values_text(self.pad_value)}")
        if self.crop:
            parts.append(f"centre crop {_size_text(self.crop)}")
        parts.append(f"pixel * {self.scale:.6g}")
        parts += [f"mean {list(self.mean)}"] if self.mean else []
        parts += [f"std {list(self.std)}"] if self.std else []
        return ", ".join(parts)


def _size_text(size: tuple[int, int] | Literal["input"]) -> str:
    return "the input's size" if size == "input" else by(size)


def _values_text(values: tuple[int, ...]) -> str:
    return "/".join(map(str, values))


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
    inputs: Mapping[str, Constant] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of the settings and the inputs, without the name, the classes and the tokenizer file."""
        text = (self.text.max_length, self.text.padding) if self.text else None
        inputs = {name: (each.digest, each.rows) for name, each in sorted(self.inputs.items())}
        return hashlib.sha256(repr((self.image, text, inputs)).encode()).hexdigest()


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Return the recipe in a file, or one of the recipes that come with trtopt, by its name.

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


def parse_recipe(table: Mapping[str, Any], name: str, folder: Path) -> Recipe:
    """Return the recipe in a parsed TOML file; relative paths in it are resolved from `folder`.

    Raises:
        UsageError: a key or a value is wrong.
    """
    check_keys(table, ("image", "text", "classes", "inputs"), name, "table or key")
    if not table:
        raise UsageError(f"{name}: the recipe is empty", why="it needs an [image] or a [text] table")
    parts = {key: table.get(key) for key in ("image", "text")}
    for key, part in parts.items():
        if part is not None and not isinstance(part, dict):
            raise UsageError(f"{name}: {key} is not a table", fix=f"Write [{key}] on a line of its own")
    image, text = parts["image"], parts["text"]
    if "inputs" in table and image is None:
        raise UsageError(f"{name}: [inputs] without [image]", why="it is for the inputs beside an image")
    return Recipe(
        name=name,
        image=None if image is None else _image(image, f"{name} [image]"),
        text=None if text is None else _text(text, f"{name} [text]", folder),
        classes=_classes(table["classes"], name, folder) if "classes" in table else None,
        inputs=parse_inputs(table["inputs"], name, folder) if "inputs" in table else {},
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
    channels = 1 if color == "gray" else 3
    scale = numbers(table.get("scale", 1.0), "scale", 1, where)
    recipe = ImageRecipe(
        resize=_resize(table.get("resize", "none"), where),
        fit=cast(Fit, one_of(table, "fit", get_args(Fit), where)),
        multiple=_multiple(table.get("multiple", 1), where),
        pad_value=_pad_value(table.get("pad_value", 0), channels, where),
        place=cast(Place, one_of(table, "place", get_args(Place), where)),
        crop=size(table.get("crop", "none"), "crop", where),
        interpolation=cast(Interpolation, one_of(table, "interpolation", get_args(Interpolation), where, "bilinear")),
        color=color,
        layout=cast(Layout, one_of(table, "layout", get_args(Layout), where)),
        scale=scale[0],
        mean=numbers(table.get("mean", []), "mean", channels, where),
        std=numbers(table.get("std", []), "std", channels, where),
        input=_input(table.get("input", ""), where),
    )
    if scale[0] == 0 or 0 in recipe.std:
        raise UsageError(f"{where}: scale and std must not be 0")
    if recipe.fit == "letterbox" and not (recipe.resize == "input" or isinstance(recipe.resize, tuple)):
        raise UsageError(
            f"{where}: a letterbox needs the size to fill", fix='Write resize = [height, width] or resize = "input"'
        )
    padded = recipe.fit == "letterbox" or recipe.multiple > 1
    unused = [key for key in ("pad_value", "place") if key in table and not padded]
    if unused:
        raise UsageError(
            f"{where}: {unused[0]} has no effect without padding", fix='Add fit = "letterbox" or multiple, or remove it'
        )
    return recipe


def _resize(value: Any, where: str) -> Side | tuple[int, int] | Literal["input"] | None:
    parts = side(value) if isinstance(value, str) else None
    return Side(cast(Literal["shorter", "longer"], parts[0]), *parts[1:]) if parts else size(value, "resize", where)


def _multiple(value: Any, where: str) -> int:
    if type(value) is not int or not 1 <= value <= _MOST_MULTIPLE:
        raise UsageError(f"{where}: multiple is {value!r}", why=f"it must be an integer from 1 to {_MOST_MULTIPLE}")
    return value


def _pad_value(value: Any, channels: int, where: str) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    if len(values) not in {1, channels} or not all(type(x) is int and 0 <= x <= 255 for x in values):
        many = f", or a list of {channels}" if channels > 1 else ""
        raise UsageError(f"{where}: pad_value is {value!r}", why=f"it must be an integer from 0 to 255{many}")
    return tuple(values)


def _input(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{where}: input is {value!r}", fix="Write the name of the input that images feed")
    return value


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
