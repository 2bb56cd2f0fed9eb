"""Images: labels from folders, the recipe's arithmetic, and broken or hostile files."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trtopt.data import Dataset, batches, open_dataset
from trtopt.data.images import output_shape, to_array
from trtopt.data.recipe import ImageRecipe, Interpolation, Layout, Recipe, Side
from trtopt.errors import DataError, UsageError
from trtopt.types import TensorSpec

RGB = (TensorSpec(name="x", dtype="float32", shape=("n", 3, 6, 8)),)
PLAIN = Recipe(name="plain", image=ImageRecipe(scale=0.5))


def save_image(path: Path, value: int = 10, size: tuple[int, int] = (8, 6), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode != "RGB" else (value, value + 1, value + 2)).save(path)
    return path


def noise(path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def opened(folder: Path, recipe: Recipe = PLAIN, *, skip_bad: bool = False) -> Dataset:
    return open_dataset(str(folder), RGB, recipe=recipe, skip_bad=skip_bad)


def refusal(folder: Path, recipe: Recipe = PLAIN) -> str:
    with pytest.raises((DataError, UsageError)) as caught:
        list(batches(opened(folder, recipe)))
    return str(caught.value)


def labels_of(tmp_path: Path, folders: Sequence[str]) -> Dataset:
    for folder in folders:
        save_image(tmp_path / folder / "a.png")
    return opened(tmp_path)


def test_images_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("c.png", "a.jpg", "B.bmp"):
        save_image(tmp_path / name)
    dataset = opened(tmp_path)
    assert dataset.ids == ("B.bmp", "a.jpg", "c.png")
    assert dataset.labels is None
    assert dataset.batched


def test_labels_are_indices_of_sorted_subfolders_and_a_note_lists_them(tmp_path: Path) -> None:
    dataset = labels_of(tmp_path, ["dog", "cat"])
    assert dataset.ids == ("cat/a.png", "dog/a.png")
    assert dataset.labels == (0, 1)
    assert any("0=cat, 1=dog" in note for note in dataset.notes)


def test_an_empty_class_keeps_its_index(tmp_path: Path) -> None:
    (tmp_path / "bee").mkdir()
    assert labels_of(tmp_path, ["ant", "cat"]).labels == (0, 2)


def test_subfolders_that_are_numbers_are_the_labels(tmp_path: Path) -> None:
    dataset = labels_of(tmp_path, ["10", "2"])
    assert dataset.ids == ("10/a.png", "2/a.png")
    assert dataset.labels == (10, 2)


def test_a_single_subfolder_is_not_a_label(tmp_path: Path) -> None:
    dataset = labels_of(tmp_path, ["images"])
    assert dataset.labels is None
    assert any("its name is not used as a label" in note for note in dataset.notes)


def test_images_both_in_and_beside_subfolders_are_refused(tmp_path: Path) -> None:
    save_image(tmp_path / "loose.png")
    save_image(tmp_path / "cat" / "a.png")
    assert "loose.png is directly in the folder" in refusal(tmp_path)


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    assert opened(tmp_path).ids == ("a.png",)


def test_pixels_go_through_scale_mean_and_std_in_the_order_of_the_colours(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", 10)
    how = ImageRecipe(color="BGR", scale=0.5, mean=(1, 2, 3), std=(1, 2, 4))
    x = opened(tmp_path, Recipe(name="r", image=how)).load(0)["x"]
    assert x.dtype == np.float32
    assert x.shape == (1, 3, 6, 8)
    assert x[0, :, 2, 3].tolist() == [(12 / 2 - 1) / 1, (11 / 2 - 2) / 2, (10 / 2 - 3) / 4]


@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    resize=st.none()
    | st.builds(Side, st.just("shorter"), st.integers(12, 30))
    | st.tuples(st.integers(12, 30), st.integers(12, 30)),
    crop=st.none() | st.tuples(st.integers(1, 12), st.integers(1, 12)),
    layout=st.sampled_from(["NCHW", "NHWC"]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)
def test_the_shape_from_the_header_is_the_shape_of_the_array(
    size: tuple[int, int],
    resize: Side | tuple[int, int] | None,
    crop: tuple[int, int] | None,
    layout: Layout,
    interpolation: Interpolation,
) -> None:
    how = ImageRecipe(resize=resize, crop=crop, layout=layout, interpolation=interpolation, scale=0.1)
    try:
        announced = output_shape(size, how, "a.png")
    except DataError:
        assert crop is not None
        return
    array = to_array(Image.new("RGB", (size[1], size[0])), how)
    assert array.shape == announced
    assert array.flags.c_contiguous


def test_the_crop_is_taken_from_the_centre() -> None:
    pixels = np.arange(30, dtype=np.uint8).reshape(5, 6)
    array = to_array(Image.fromarray(pixels), ImageRecipe(color="gray", crop=(3, 2)))
    assert array[0].tolist() == pixels[1:4, 2:4].tolist()


def test_the_longer_side_is_rounded_down_as_in_torchvision() -> None:
    assert output_shape((480, 641), ImageRecipe(resize=Side("shorter", 256)), "a.png") == (3, 256, 341)


def test_a_crop_larger_than_the_image_is_refused(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    spec = (TensorSpec(name="x", dtype="float32", shape=("n", 3, 16, 16)),)
    with pytest.raises(DataError, match=r"a.png: 6x8 is too small: the recipe crops 16x16"):
        open_dataset(str(tmp_path), spec, recipe=Recipe(name="r", image=ImageRecipe(crop="input")))


def test_an_image_of_another_size_is_refused_by_name(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    save_image(tmp_path / "b.png", size=(9, 6))
    assert "b.png: x has shape [3, 6, 9]: the model takes [n, 3, 6, 8]" in refusal(tmp_path)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_other_colour_modes_are_converted(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    Image.new("RGB", (8, 6), (255, 255, 255)).convert(mode).save(tmp_path / f"a.{suffix}")
    assert opened(tmp_path).load(0)["x"].max() == 127.5


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    Image.new("P", (8, 6)).save(tmp_path / "a.png", transparency=b"\x00\x80")
    assert opened(tmp_path).load(0)["x"].shape == (1, 3, 6, 8)


def test_sixteen_bits_per_channel_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((6, 8), 4000, np.uint16)).save(tmp_path / "a.png")
    assert "a.png: more than 8 bits per channel" in refusal(tmp_path)


def test_a_file_that_is_not_an_image_is_refused_by_name(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"not an image")
    assert "b.png: cannot be read as an image" in refusal(tmp_path)


def test_postscript_named_png_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\n")
    assert "cannot be read as an image" in refusal(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
def test_a_truncated_image_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    save_image(tmp_path / f"a.{suffix}")
    path = noise(tmp_path / f"b.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    assert f"b.{suffix}: cannot be read as an image" in refusal(tmp_path)


def test_skip_bad_leaves_out_broken_images_and_lists_them(tmp_path: Path) -> None:
    for label in ("0", "1", "2"):
        noise(save_image(tmp_path / label / "a.png"))
    broken = tmp_path / "1" / "a.png"
    broken.write_bytes(broken.read_bytes()[:100])
    dataset = opened(tmp_path, skip_bad=True)
    assert dataset.ids == ("0/a.png", "2/a.png")
    assert dataset.labels == (0, 2)
    assert any("left out 1 of 3" in note and "1/a.png" in note for note in dataset.warnings)
    assert len(list(batches(dataset, 2))) == 1


@pytest.mark.parametrize("side", [12_000, 40_000])
def test_a_decompression_bomb_is_refused_without_being_decoded(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""))
    assert "a.png: too many pixels" in refusal(tmp_path)


def test_images_for_a_model_with_two_inputs_are_refused(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    second = TensorSpec(name="y", dtype="float32", shape=("n", 1))
    with pytest.raises(DataError, match="images feed one input: the model has 2: x, y"):
        open_dataset(str(tmp_path), (*RGB, second), recipe=PLAIN)


def test_a_recipe_for_text_is_refused_for_images(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    assert "has no [image] table" in refusal(tmp_path, Recipe(name="r"))


def test_an_input_of_bytes_takes_untouched_pixels(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", 200)
    spec = (TensorSpec(name="x", dtype="uint8", shape=("n", 6, 8, 3)),)
    recipe = Recipe(name="r", image=ImageRecipe(layout="NHWC"))
    x = open_dataset(str(tmp_path), spec, recipe=recipe).load(0)["x"]
    assert x.dtype == np.uint8
    assert x[0, 0, 0].tolist() == [200, 201, 202]
    with pytest.raises(UsageError, match="sets scale, mean or std"):
        open_dataset(str(tmp_path), spec, recipe=PLAIN)


def test_a_half_precision_input_gets_half_precision(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    spec = (TensorSpec(name="x", dtype="float16", shape=("n", 3, 6, 8)),)
    assert open_dataset(str(tmp_path), spec, recipe=PLAIN).load(0)["x"].dtype == np.float16


def test_an_integer_input_is_refused(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    spec = (TensorSpec(name="x", dtype="int64", shape=("n", 3, 6, 8)),)
    with pytest.raises(DataError, match="images cannot feed input x: it is int64"):
        open_dataset(str(tmp_path), spec, recipe=PLAIN)


def test_images_of_different_sizes_feed_a_dynamic_input_one_at_a_time(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", size=(8, 6))
    save_image(tmp_path / "b.png", size=(10, 4))
    spec = (TensorSpec(name="x", dtype="float32", shape=("n", 3, "h", "w")),)
    dataset = open_dataset(str(tmp_path), spec, recipe=PLAIN)
    assert [batch.feed["x"].shape for batch in batches(dataset, 2)] == [(1, 3, 6, 8), (1, 3, 4, 10)]


def test_the_digest_changes_with_a_pixel_a_label_and_the_recipe(tmp_path: Path) -> None:
    save_image(tmp_path / "0" / "a.png", 1)
    save_image(tmp_path / "1" / "a.png", 2)
    digests = [opened(tmp_path).digest, opened(tmp_path).digest]
    assert digests[0] == digests[1]
    digests.append(opened(tmp_path, Recipe(name="plain", image=ImageRecipe(scale=0.25))).digest)
    save_image(tmp_path / "1" / "a.png", 3)
    digests.append(opened(tmp_path).digest)
    (tmp_path / "1").rename(tmp_path / "2")
    digests.append(opened(tmp_path).digest)
    assert len(set(digests)) == 4
