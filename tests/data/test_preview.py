"""Tests of previews: small images and the beginnings of values."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from trtopt.data.dataset import Array, Shown
from trtopt.data.images import to_array
from trtopt.data.preview import MOST_BYTES, SIDE, data_uri, preview, to_pixels
from trtopt.data.recipe import ImageRecipe

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (90, 60, 3)).astype(np.uint8)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("color", ["RGB", "BGR", "gray"])
def test_a_recipe_is_undone(layout: str, color: str) -> None:
    recipe = ImageRecipe(
        layout=layout, color=color, scale=1 / 255, mean=(0.4,), std=(0.2,)  # type: ignore[arg-type]
    )  # fmt: skip
    image = Image.fromarray(PHOTO)
    pixels = to_pixels(to_array(image, recipe)[None], recipe)
    assert pixels is not None
    np.testing.assert_array_equal(pixels, np.asarray(image.convert("L")) if color == "gray" else PHOTO)


@pytest.mark.parametrize(("factor", "offset"), [(1.0, 0.0), (1 / 255, 0.0), (7.5, -900.0)])
def test_without_a_recipe_the_range_is_that_of_the_values(factor: float, offset: float) -> None:
    whole = PHOTO.copy()
    whole[0, 0], whole[0, 1] = 0, 255
    values = (whole * factor + offset).astype(np.float32).transpose(2, 0, 1)[None]
    pixels = to_pixels(values, None)
    assert pixels is not None
    assert np.abs(pixels.astype(int) - whole).max() <= 1


def test_a_large_image_becomes_small_and_keeps_its_mean() -> None:
    image = np.linspace(0, 255, 700 * 500).reshape(1, 1, 700, 500).astype(np.float32)
    pixels = to_pixels(image, None)
    assert pixels is not None
    assert max(pixels.shape) <= SIDE
    assert abs(float(pixels.mean()) - float(image.mean())) < 2


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (112, 112), (112, 60)])
def test_a_data_uri_is_an_image_of_at_most_20_kb(size: tuple[int, int]) -> None:
    noise = RNG.integers(0, 256, (*size, 3)).astype(np.uint8)
    uri = data_uri(noise)
    head, _, content = uri.partition(",")
    assert head == f"data:image/{'png' if max(size) <= 48 else 'jpeg'};base64"
    assert len(uri) <= MOST_BYTES
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == size[::-1]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((1, 4, 8, 8), np.float32),
        np.zeros((1, 128, 768), np.float32),
        np.zeros((1, 3, 0, 8), np.float32),
        np.zeros((1, 1, 1, 16000), np.float32),
        np.zeros((1, 3, 8, 8), np.int64),
        np.zeros((2, 3, 8, 8), np.float32),
    ],
)
def test_other_inputs_are_no_images(array: Array) -> None:
    assert to_pixels(array, None) is None


def test_constant_values_are_an_image() -> None:
    pixels = to_pixels(np.full((1, 3, 8, 8), -3.5, np.float32), None)
    assert pixels is not None
    assert pixels.shape == (8, 8, 3)


def test_an_input_that_is_no_image_is_shown_by_its_first_values() -> None:
    feed = {"ids": np.arange(12)[None], "mask": np.ones((1, 2), np.float32)}
    assert preview(feed, Shown(), 0).text == "ids: 0, 1, 2, 3, 4, 5, 6, 7, … (12 values); mask: 1, 1"


def test_a_text_is_shown_itself() -> None:
    shown = Shown(text=lambda i: "word " * 100 if i == 3 else "")
    text = preview({"ids": np.arange(12)[None]}, shown, 3).text
    assert text.startswith("word word")
    assert len(text) == 200
