"""Geometry of a recipe: where an image of a given size comes to lie in the model's input.

The steps are resize, letterbox, padding to a multiple, crop, in this order. Sizes are (height, width) in pixels.

Touches: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from trtopt.data.recipe import ImageRecipe, Place, Side

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Frame:
    """The image is resized to `resized` and put at `offset` (top, left) into a canvas; `crop` is cut out of it.

    `corner` is the top left corner of the crop in the canvas. Without padding the canvas is the resized image itself,
    and without a crop the crop is the canvas.
    """

    resized: Size
    canvas: Size
    offset: Size
    corner: Size
    crop: Size

    @property
    def fits(self) -> bool:
        """Whether the crop is inside the canvas."""
        return self.crop[0] <= self.canvas[0] and self.crop[1] <= self.canvas[1]


def frame(size: Size, how: ImageRecipe) -> Frame:
    """Return the frame of an image, for a recipe whose sizes are known (`fitting.fitted`)."""
    resized, canvas = _resized(size, how)
    if how.multiple > 1:
        height, width = (-(-side // how.multiple) * how.multiple for side in canvas)
        canvas = height, width
    offset = _offset(canvas, resized, how.place)
    crop = how.crop if isinstance(how.crop, tuple) else canvas
    # Rounded as in torchvision's centre crop.
    corner = round((canvas[0] - crop[0]) / 2), round((canvas[1] - crop[1]) / 2)
    return Frame(resized=resized, canvas=canvas, offset=offset, corner=corner, crop=crop)


def _resized(size: Size, how: ImageRecipe) -> tuple[Size, Size]:
    """Return the size of the image after the resize, and that of the canvas which it is padded to."""
    if isinstance(how.resize, Side):
        resized = _by_side(size, how.resize)
        return resized, resized
    if not isinstance(how.resize, tuple):
        return size, size
    if how.fit == "stretch":
        return how.resize, how.resize
    return contained(size, how.resize), how.resize


def _by_side(size: Size, side: Side) -> Size:
    """Return the size with one side of the given length; the other is rounded down, as in torchvision."""
    height, width = size
    if (height <= width) == (side.which == "shorter"):
        return side.length, max(side.length * width // height, 1)
    return max(side.length * height // width, 1), side.length


def contained(size: Size, box: Size) -> Size:
    """Return the largest size with the same aspect ratio inside a box, rounded as in pillow's `ImageOps.contain`."""
    height, width = size
    if width / height > box[1] / box[0]:
        return max(round(height / width * box[1]), 1), box[1]
    return box[0], max(round(width / height * box[0]), 1)


def _offset(canvas: Size, resized: Size, place: Place) -> Size:
    """Return where the image is put. Of an odd number of pixels of padding, more are below and on the right."""
    if place == "top-left":
        return 0, 0
    return (canvas[0] - resized[0]) // 2, (canvas[1] - resized[1]) // 2
