"""`open_dataset`: the source decides how it is read, and data that do not fit the model are refused in one line."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trtopt.data import batches, open_dataset
from trtopt.errors import DataError
from trtopt.types import TensorSpec

ONE = (TensorSpec(name="x", dtype="float32", shape=("n", 3)),)
TWO = (
    TensorSpec(name="ids", dtype="int64", shape=("n", 4)),
    TensorSpec(name="mask", dtype="int64", shape=("n", 4)),
)
TIME_FIRST = (
    TensorSpec(name="input", dtype="float32", shape=("time", 5)),
    TensorSpec(name="h", dtype="float32", shape=(1, 1, 2)),
)


def save(path: Path, rows: int = 4, dtype: str = "float32") -> str:
    np.save(path, np.arange(rows * 3).reshape(rows, 3).astype(dtype))
    return str(path)


def error(source: object, inputs: tuple[TensorSpec, ...] = ONE) -> str:
    with pytest.raises(DataError) as caught:
        open_dataset(str(source), inputs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_path_is_refused_with_the_supported_sources(tmp_path: Path) -> None:
    message = error(tmp_path / "nowhere")
    assert "nowhere: no such file or folder" in message
    assert ".npz" in message


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1,2,3")
    assert "data.csv: unsupported data format" in error(tmp_path / "data.csv")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "no samples" in error(tmp_path)


def test_zero_rows_are_refused(tmp_path: Path) -> None:
    assert "no samples" in error(save(tmp_path / "x.npy", rows=0))


def test_a_folder_of_both_images_and_arrays_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "x.npy")
    Image.new("L", (3, 3)).save(tmp_path / "a.png")
    message = error(tmp_path)
    assert "a.png" in message
    assert "x.npy" in message


def test_a_missing_input_is_named_with_the_arrays_that_are_there(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", ids=np.zeros((2, 4), np.int64))
    message = error(tmp_path / "d.npz", TWO)
    assert "no array for input mask" in message
    assert "it has ids" in message


def test_an_unknown_array_is_refused_with_the_models_inputs(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 3), np.float32), y=np.zeros((2, 3), np.float32))
    message = error(tmp_path / "d.npz")
    assert "y is not an input" in message
    assert "x (float32 [n, 3])" in message


def test_a_wrong_shape_is_refused_with_both_shapes(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 7), np.float32))
    message = error(tmp_path / "d.npz")
    assert message.startswith("d.npz[0]: x has shape [7]")
    assert "[n, 3]" in message


@pytest.mark.parametrize(
    ("shape", "wanted", "fix"),
    [
        ((28, 28, 3), ("n", 3, 28, 28), 'layout = "NCHW"'),
        ((1, 28, 28, 1), ("n", 1, 28, 28), 'layout = "NCHW"'),
        ((3, 28, 28), ("n", 28, 28, 3), 'layout = "NHWC"'),
        ((3, 28, 28), ("n", 1, 28, 28), 'color = "gray"'),
        ((1, 28, 28), ("n", 3, "h", "w"), 'color = "RGB"'),
    ],
)
def test_a_wrong_shape_of_an_image_is_refused_with_the_recipe_that_corrects_it(
    tmp_path: Path, shape: tuple[int, ...], wanted: tuple[int | str, ...], fix: str
) -> None:
    np.savez(tmp_path / "0.npz", x=np.zeros(shape, np.float32))
    with pytest.raises(DataError, match=fix):
        open_dataset(str(tmp_path), (TensorSpec(name="x", dtype="float32", shape=wanted),))


def test_a_wrong_rank_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 1, 1, 3), np.float32))
    assert "x has shape [1, 1, 3]" in error(tmp_path / "d.npz")


@pytest.mark.parametrize("dtype", ["float64", "float16", "uint8", "int32", "bool"])
def test_another_type_is_refused_with_advice(tmp_path: Path, dtype: str) -> None:
    message = error(save(tmp_path / "x.npy", dtype=dtype))
    assert f"x is {dtype}" in message
    assert "astype(numpy.float32)" in message


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64", ">i4"])
def test_integers_are_widened_when_every_value_is_kept(tmp_path: Path, dtype: str) -> None:
    np.savez(tmp_path / "d.npz", ids=np.full((1, 4), 7, dtype), mask=np.ones((1, 4), np.int64))
    ids = open_dataset(str(tmp_path / "d.npz"), TWO).load(0)["ids"]
    assert ids.dtype == np.int64
    assert ids.tolist() == [[7, 7, 7, 7]]


def test_integers_are_not_narrowed(tmp_path: Path) -> None:
    narrow = (TensorSpec(name="x", dtype="int32", shape=("n", 3)),)
    assert "x is int64" in error(save(tmp_path / "x.npy", dtype="int64"), narrow)


def test_big_endian_floats_are_read_as_native_ones(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[1, 2, 3]], ">f4"))
    x = open_dataset(str(tmp_path / "x.npy"), ONE).load(0)["x"]
    assert x.dtype == np.dtype("float32")
    assert x.dtype.isnative
    assert x.tolist() == [[1, 2, 3]]


def test_minus_infinity_is_a_mask(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((2, 3), -np.inf, np.float32))
    assert len(list(batches(open_dataset(str(tmp_path / "x.npy"), ONE)))) == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused_at_its_sample(tmp_path: Path, bad: float) -> None:
    values = np.zeros((4, 3), np.float32)
    values[2, 1] = bad
    np.save(tmp_path / "x.npy", values)
    dataset = open_dataset(str(tmp_path / "x.npy"), ONE)
    with pytest.raises(DataError, match=r"x\.npy\[2\]: 1 of 3 values of x are NaN or infinite.*--skip-bad"):
        list(batches(dataset, 2))


def test_skip_bad_leaves_out_bad_samples_and_names_them(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    values[1, 0] = np.nan
    np.savez(tmp_path / "d.npz", x=values, labels=np.arange(4))
    dataset = open_dataset(str(tmp_path / "d.npz"), ONE, skip_bad=True)
    assert dataset.ids == ("d.npz[0]", "d.npz[2]", "d.npz[3]")
    assert dataset.labels == (0, 2, 3)
    assert dataset.load(1)["x"].tolist() == [[6, 7, 8]]
    (note,) = dataset.warnings
    assert note == "left out 1 of 4 samples: d.npz[1]: 1 of 3 values of x are NaN or infinite"


def test_skip_bad_with_nothing_left_is_refused_with_the_first_reason(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((2, 3), np.nan, np.float32))
    with pytest.raises(DataError, match=r"all 2 are unusable.*x\.npy\[0\]"):
        open_dataset(str(tmp_path / "x.npy"), ONE, skip_bad=True)


def test_a_batch_axis_is_added_to_samples_that_lack_it(tmp_path: Path) -> None:
    dataset = open_dataset(save(tmp_path / "x.npy"), ONE)
    assert dataset.batched
    assert dataset.load(1)["x"].tolist() == [[3, 4, 5]]


def test_samples_that_have_a_batch_axis_of_one_are_joined(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 1, 3), np.float32))
    dataset = open_dataset(str(tmp_path / "x.npy"), ONE)
    assert [batch.feed["x"].shape for batch in batches(dataset, 3)] == [(3, 3), (1, 3)]


def test_samples_that_are_whole_batches_are_fed_unchanged(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 2, 3), np.float32))
    dataset = open_dataset(str(tmp_path / "x.npy"), ONE)
    assert not dataset.batched
    assert [batch.feed["x"].shape for batch in batches(dataset, 3)] == [(2, 3)] * 4


def test_a_time_axis_is_not_mistaken_for_a_batch_axis(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", input=np.zeros((6, 9, 5), np.float32), h=np.zeros((6, 1, 1, 2), np.float32))
    dataset = open_dataset(str(tmp_path / "d.npz"), TIME_FIRST)
    assert not dataset.batched
    assert {name: array.shape for name, array in dataset.load(5).items()} == {"input": (9, 5), "h": (1, 1, 2)}


def test_one_time_step_is_not_joined_while_the_state_has_a_fixed_first_axis(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", input=np.zeros((6, 1, 5), np.float32), h=np.zeros((6, 1, 1, 2), np.float32))
    assert not open_dataset(str(tmp_path / "d.npz"), TIME_FIRST).batched


def test_samples_for_a_batch_fixed_at_one_are_not_joined(tmp_path: Path) -> None:
    fixed = (TensorSpec(name="x", dtype="float32", shape=(1, 3)),)
    dataset = open_dataset(save(tmp_path / "x.npy"), fixed)
    assert [batch.feed["x"].shape for batch in batches(dataset, 8)] == [(1, 3)] * 4


def test_samples_for_a_larger_fixed_batch_are_grouped_and_the_last_group_is_filled(tmp_path: Path) -> None:
    fixed = (TensorSpec(name="x", dtype="float32", shape=(3, 3)),)
    np.savez(tmp_path / "d.npz", x=np.arange(12, dtype=np.float32).reshape(4, 3), labels=np.arange(4))
    dataset = open_dataset(str(tmp_path / "d.npz"), fixed)
    assert [batch.feed["x"][:, 0].tolist() for batch in batches(dataset, 8)] == [[0, 3, 6], [9, 0, 3]]
    assert dataset.ids == ("d.npz[0] to d.npz[2]", "d.npz[3] to d.npz[3]")
    assert dataset.labels is None
    assert dataset.shapes == (((3, 3),),)
    assert any("the last one filled with 2 samples from the start" in note for note in dataset.notes)


def test_a_group_has_the_ids_and_labels_of_its_samples(tmp_path: Path) -> None:
    fixed = (TensorSpec(name="x", dtype="float32", shape=(3, 3)),)
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 3), np.float32), labels=np.array([7, 8, 9, 5]))
    groups = open_dataset(str(tmp_path / "d.npz"), fixed).groups
    assert groups is not None
    assert groups.ids == ("d.npz[0]", "d.npz[1]", "d.npz[2]", "d.npz[3]")
    assert groups.labels == (7, 8, 9, 5)
    assert [groups.members(feed) for feed in range(2)] == [(0, 1, 2), (3,)]


def test_a_single_sample_fills_a_group_many_times(tmp_path: Path) -> None:
    fixed = (TensorSpec(name="x", dtype="float32", shape=(5, 3)),)
    dataset = open_dataset(save(tmp_path / "x.npy", rows=2), fixed)
    assert dataset.load(0)["x"][:, 0].tolist() == [0, 3, 0, 3, 0]


def test_samples_of_different_shapes_cannot_fill_a_fixed_batch(tmp_path: Path) -> None:
    fixed = (TensorSpec(name="x", dtype="float32", shape=(2, "length")),)
    for length in (3, 4):
        np.save(tmp_path / f"{length}.npy", np.zeros(length, np.float32))
    assert "only samples of one shape can be joined" in error(tmp_path, fixed)


def test_whole_feeds_for_a_fixed_batch_are_fed_unchanged(tmp_path: Path) -> None:
    fixed = (TensorSpec(name="x", dtype="float32", shape=(2, 3)),)
    np.save(tmp_path / "x.npy", np.zeros((4, 2, 3), np.float32))
    assert open_dataset(str(tmp_path / "x.npy"), fixed).load(3)["x"].shape == (2, 3)


def test_samples_that_differ_in_shape_are_fed_one_at_a_time(tmp_path: Path) -> None:
    free = (TensorSpec(name="x", dtype="float32", shape=("n", "length")),)
    for length in (3, 5):
        np.save(tmp_path / f"{length}.npy", np.zeros(length, np.float32))
    dataset = open_dataset(str(tmp_path), free)
    assert [batch.feed["x"].shape for batch in batches(dataset, 2)] == [(1, 3), (1, 5)]
    assert dataset.shapes == (((1, 3),), ((1, 5),))
    assert any("one at a time" in note for note in dataset.notes)


@settings(max_examples=40)
@given(rows=st.integers(1, 23), size=st.integers(1, 9), workers=st.integers(1, 5))
def test_batches_contain_every_sample_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, rows: int, size: int, workers: int
) -> None:
    dataset = open_dataset(save(tmp_path_factory.mktemp("d") / "x.npy", rows=rows), ONE)
    loaded = list(batches(dataset, size, workers=workers))
    assert [i for batch in loaded for i in batch.indices] == list(range(rows))
    assert all(len(batch.indices) == size for batch in loaded[:-1])
    joined = np.concatenate([batch.feed["x"] for batch in loaded])
    assert np.array_equal(joined, np.arange(rows * 3).reshape(rows, 3))


def test_the_digest_is_of_the_content_and_not_of_the_files_name(tmp_path: Path) -> None:
    first, same = save(tmp_path / "a.npy"), save(tmp_path / "b.npy")
    other = save(tmp_path / "c.npy", rows=5)
    digests = [open_dataset(source, ONE).digest for source in (first, same, other)]
    assert digests[0] == digests[1] != digests[2]
