"""Inputs beside the image, from the [inputs.NAME] tables of a recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trtopt.data import load_recipe, open_dataset
from trtopt.data.dataset import Dataset
from trtopt.errors import DataError, UsageError
from trtopt.types import Dim, TensorSpec


def spec(name: str, *shape: Dim, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


DETECTOR = (spec("image", "n", 3, 8, 8), spec("im_shape", "n", 2), spec("scale_factor", "n", 2))
IMAGE = '[image]\nresize = "input"\nlayout = "input"\n'
BOTH = IMAGE + '[inputs.im_shape]\nvalue = [8, 8]\n[inputs.scale_factor]\nrows = "scale.npy"\n'


def opened(folder: Path, text: str, inputs: tuple[TensorSpec, ...] = DETECTOR) -> Dataset:
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for place in range(3):
        Image.new("RGB", (10, 12), (place, 0, 0)).save(images / f"{place}.png")
    (folder / "r.toml").write_text(text)
    return open_dataset(str(images), inputs, recipe=load_recipe(folder / "r.toml"))


def test_constants_and_rows_of_a_file_feed_the_other_inputs(tmp_path: Path) -> None:
    scale = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.save(tmp_path / "scale.npy", scale)
    dataset = opened(tmp_path, BOTH)
    assert dataset.batched
    for place in range(3):
        feed = dataset.load(place)
        assert feed["image"].shape == (1, 3, 8, 8)
        np.testing.assert_array_equal(feed["im_shape"], np.array([[8, 8]], np.float32))
        np.testing.assert_array_equal(feed["scale_factor"], scale[place : place + 1])


def test_a_file_may_hold_one_array_for_all(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([1.5, 2.5], np.float32))
    text = IMAGE + '[inputs.im_shape]\nfile = "a.npy"\n[inputs.scale_factor]\nvalue = [1, 1]\n'
    feeds = [opened(tmp_path, text).load(place)["im_shape"].tolist() for place in range(3)]
    assert feeds == [[[1.5, 2.5]]] * 3


def test_the_digest_changes_with_a_constant_and_with_a_file(tmp_path: Path) -> None:
    digests = set()
    for scale, shape in ((1, 8), (2, 8), (2, 9)):
        np.save(tmp_path / "scale.npy", np.full((3, 2), scale, np.float32))
        digests.add(opened(tmp_path, BOTH.replace("[8, 8]", f"[{shape}, 8]")).digest)
    assert len(digests) == 3


def test_the_image_can_be_named_among_the_inputs(tmp_path: Path) -> None:
    text = IMAGE.replace("[image]", '[image]\ninput = "image"') + "[inputs.im_shape]\nvalue = [8, 8]\n"
    assert opened(tmp_path, text, DETECTOR[:2]).load(0)["image"].shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (IMAGE, DataError, "images feed one input"),
        (IMAGE + "[inputs.im_shape]\nvalue = [8, 8]", DataError, "left are image, scale_factor"),
        (IMAGE + "[inputs.im_shap]\nvalue = [8, 8]", UsageError, "has no input im_shap. Did you mean im_shape"),
        (IMAGE.replace("[image]", '[image]\ninput = "imag"'), UsageError, "has no input imag. Did you mean image"),
        (BOTH.replace("[8, 8]", "[8, 8, 8]"), DataError, "im_shape has shape"),
        (BOTH, DataError, r"its shape is \[2, 2\]: there are 3 images, and each needs a row"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    np.save(tmp_path / "scale.npy", np.zeros((2 if text == BOTH else 3, 2), np.float32))
    with pytest.raises(error, match=message):
        opened(tmp_path, text)


def test_a_constant_that_the_type_cannot_hold_is_refused(tmp_path: Path) -> None:
    inputs = (DETECTOR[0], spec("size", "n", 1, dtype="int64"))
    assert opened(tmp_path, IMAGE + "[inputs.size]\nvalue = [8]", inputs).load(0)["size"].dtype == np.int64
    with pytest.raises(DataError, match="input size is int64"):
        opened(tmp_path, IMAGE + "[inputs.size]\nvalue = [8.5]", inputs)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scale.npy").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match=r"cannot be read as .npy"):
        opened(tmp_path, BOTH)
