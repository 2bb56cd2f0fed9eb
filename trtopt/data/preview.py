"""Previews of samples for people: a small image, or the beginning of the text or of the values.

Touches: nothing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trtopt.data.dataset import Array, Shown
from trtopt.data.recipe import ImageRecipe

SIDE = 112
"""Largest side of a preview in pixels."""

MOST_BYTES = 20_000
"""Largest length of a data URI."""

_VALUES = 8
_TEXT = 200
_SMALL = 48
"""Images up to this side are stored without loss: one pixel of a digit of 8 x 8 matters."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Preview:
    """A sample as it is shown: its pixels uint8 [h, w] or [h, w, 3] (None if no input is an image), or else text."""

    pixels: Pixels | None
    text: str = ""


def preview(feed: Mapping[str, Array], shown: Shown, index: int) -> Preview:
    """Return the preview of sample `index`, given its inputs, each with a batch axis of size 1 if it has one."""
    for array in feed.values():
        pixels = to_pixels(array, shown.image)
        if pixels is not None:
            return Preview(pixels)
    if shown.text is not None:
        return Preview(None, shortened(shown.text(index)))
    return Preview(None, shortened("; ".join(f"{name}: {beginning(array)}" for name, array in feed.items())))


def shortened(text: str) -> str:
    """Return the beginning of a text."""
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"


def beginning(array: Array) -> str:
    """Return the first values of an array as text, and how many there are."""
    values = array.reshape(-1)[:_VALUES]
    number = np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16"
    shown = ", ".join(f"{float(value):.4g}" if number else str(value) for value in values)
    return f"{shown}, … ({array.size} values)" if array.size > _VALUES else shown


def to_pixels(array: Array, recipe: ImageRecipe | None) -> Pixels | None:
    """Return an input as a small image; None if it does not have the shape or the type of one.

    Without a recipe, the order of the axes is guessed from their lengths, and the range of the pixels from the values.
    """
    if array.ndim != 4 or array.shape[0] != 1 or array.dtype.kind not in "fu" or not array.size:
        return None
    image = array[0]
    if recipe.layout == "NCHW" if recipe is not None else image.shape[0] in (1, 3):
        image = image.transpose(1, 2, 0)
    if image.shape[2] not in (1, 3) or min(image.shape[:2]) < 4:
        return None
    with np.errstate(over="ignore", invalid="ignore"):  # a mask of -inf may have the shape of an image
        pixels = _restored(_reduced(image), recipe)
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def _reduced(image: Array) -> npt.NDArray[np.float32]:
    """Return the image with sides of at most `SIDE`. Each pixel is the mean of four in its square."""
    step = -(-max(image.shape[:2]) // SIDE)
    if step == 1:
        return image.astype(np.float32)
    height, width = (max(side // step, 1) * step for side in image.shape[:2])
    image, half = image[:height, :width], step // 2
    corners = [image[top::step, left::step].astype(np.float32) for top in (0, half) for left in (0, half)]
    height, width = (min(corner.shape[axis] for corner in corners) for axis in (0, 1))
    total = np.zeros((height, width, image.shape[2]), np.float32)
    for corner in corners:
        total += corner[:height, :width]
    total /= np.float32(4)
    return total


def _restored(values: npt.NDArray[np.float32], recipe: ImageRecipe | None) -> Pixels:
    """Return values as pixels: undo the recipe's scaling, or else stretch the range that they seem to have."""
    if recipe is not None:
        if recipe.std:
            values = values * np.asarray(recipe.std, np.float32)
        if recipe.mean:
            values = values + np.asarray(recipe.mean, np.float32)
        values = values / np.float32(recipe.scale)
        if recipe.color == "BGR":
            values = values[:, :, ::-1]
    else:
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        if low >= 0 and high <= 1:
            values = values * np.float32(255)
        elif not (low >= 0 and high <= 255):
            values = (values - np.float32(low)) * np.float32(255 / max(high - low, 1e-30))
    return np.clip(np.rint(np.nan_to_num(values)), 0, 255).astype(np.uint8)


def data_uri(pixels: Pixels) -> str:
    """Return pixels as a data URI of at most `MOST_BYTES`: PNG for a small image, and JPEG otherwise."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    if max(image.size) <= _SMALL:
        return _encoded(image, "png")
    qualities = iter((80, 50, 25, 10, 1))
    uri = _encoded(image, "jpeg", quality=next(qualities))
    while len(uri) > MOST_BYTES:
        uri = _encoded(image, "jpeg", quality=next(qualities))
    return uri


def _encoded(image: object, format: str, **how: int) -> str:
    stream = io.BytesIO()
    image.save(stream, format.upper(), **how)  # type: ignore[attr-defined]
    return f"data:image/{format};base64,{base64.b64encode(stream.getvalue()).decode()}"
