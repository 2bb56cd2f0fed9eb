"""Geometry of recipes, compared with pillow's own operations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from trtopt.data.geometry import frame
from trtopt.data.images import output_shape, to_array
from trtopt.data.recipe import ImageRecipe, Place, Side

sizes = st.tuples(st.integers(1, 60), st.integers(1, 60))
places = st.sampled_from(["center", "top-left"])
RNG = np.random.default_rng(0)


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (*size, 3)).astype(np.uint8))


def applied(image: Image.Image, how: ImageRecipe) -> np.ndarray:  # type: ignore[type-arg]
    """Return the array [h, w, c], after checking that its shape is the one foretold from the header."""
    array = to_array(image, how)
    assert array.shape == output_shape((image.height, image.width), how, "image")
    return array


@given(sizes, sizes, places)
def test_a_letterbox_is_pillows_contained_image_on_a_canvas(
    size: tuple[int, int], box: tuple[int, int], place: Place
) -> None:
    image = noise(size)
    how = ImageRecipe(resize=box, fit="letterbox", pad_value=(114,), place=place, layout="NHWC")
    ratio = size[1] / size[0] / (box[1] / box[0])
    inner = (box[1], round(size[0] / size[1] * box[1])) if ratio > 1 else (round(size[1] / size[0] * box[0]), box[0])
    if min(inner) >= 1:  # pillow cannot resize to nothing; here a side is at least 1
        assert ImageOps.contain(image, box[::-1]).size == inner
    small = image.resize((max(inner[0], 1), max(inner[1], 1)), Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", box[::-1], (114, 114, 114))
    middle = ((box[1] - small.width) // 2, (box[0] - small.height) // 2)
    canvas.paste(small, middle if place == "center" else (0, 0))
    np.testing.assert_array_equal(applied(image, how), np.asarray(canvas))


@given(sizes, st.integers(1, 80))
def test_the_longer_side_is_as_stated_and_the_ratio_is_kept(size: tuple[int, int], length: int) -> None:
    height, width, _ = applied(noise(size), ImageRecipe(resize=Side("longer", length), layout="NHWC")).shape
    assert max(height, width) == length
    assert abs(min(height, width) - min(size) / max(size) * length) <= 1


@given(sizes, st.integers(1, 40))
def test_the_shorter_side_is_as_stated_and_the_ratio_is_kept(size: tuple[int, int], length: int) -> None:
    resized = frame(size, ImageRecipe(resize=Side("shorter", length))).resized
    assert min(resized) == length
    assert -1e-9 <= max(size) / min(size) * length - max(resized) < 1


@given(sizes, st.integers(1, 40), places)
def test_padding_to_a_multiple_keeps_the_image_and_adds_less_than_the_multiple(
    size: tuple[int, int], multiple: int, place: Place
) -> None:
    image = noise(size)
    how = ImageRecipe(multiple=multiple, pad_value=(1, 2, 3), place=place, layout="NHWC")
    array = applied(image, how)
    height, width, _ = array.shape
    assert height % multiple == width % multiple == 0
    assert 0 <= height - size[0] < multiple
    assert 0 <= width - size[1] < multiple
    left, top = ((width - size[1]) // 2, (height - size[0]) // 2) if place == "center" else (0, 0)
    borders = (left, top, width - size[1] - left, height - size[0] - top)
    np.testing.assert_array_equal(array, np.asarray(ImageOps.expand(image, borders, (1, 2, 3))))


@pytest.mark.parametrize(("color", "pad", "expected"), [("RGB", (1, 2, 3), [1, 2, 3]), ("BGR", (1, 2, 3), [1, 2, 3]),
                                                        ("RGB", (9,), [9, 9, 9]), ("gray", (9,), [9])])  # fmt: skip
def test_padding_is_in_the_order_of_the_colours(color: str, pad: tuple[int, ...], expected: list[int]) -> None:
    how = ImageRecipe(multiple=16, pad_value=pad, place="top-left", layout="NHWC", color=color)  # type: ignore[arg-type]
    assert applied(noise((8, 8)), how)[15, 15].tolist() == expected


def test_padding_is_scaled_and_normalized_like_every_pixel() -> None:
    how = ImageRecipe(multiple=16, pad_value=(114,), scale=1 / 255, mean=(0.5,), std=(0.25,), layout="NHWC")
    value = applied(noise((8, 8)), how)[0, 0, 0]
    assert value == pytest.approx((114 / 255 - 0.5) / 0.25)
