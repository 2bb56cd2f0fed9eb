"""NumPy files: nothing is unpickled, one sample is read at a time, and corrupt files are named."""

import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trtopt.data import batches, open_dataset
from trtopt.data import stored as stored_arrays
from trtopt.errors import DataError
from trtopt.types import TensorSpec

ONE = (TensorSpec(name="x", dtype="float32", shape=("n", 3)),)
TWO = (*ONE, TensorSpec(name="y", dtype="float32", shape=("n", 3)))
VALUES = np.arange(12, dtype=np.float32).reshape(4, 3)


def refusal(source: Path, inputs: tuple[TensorSpec, ...] = ONE) -> str:
    with pytest.raises(DataError) as caught:
        open_dataset(str(source), inputs)
    return str(caught.value)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("how", ["npy", "savez", "savez_compressed"])
def test_every_layout_reads_the_same_rows(tmp_path: Path, how: str, order: str) -> None:
    values = np.asarray(VALUES, order=order)
    path = tmp_path / ("d.npy" if how == "npy" else "d.npz")
    if how == "npy":
        np.save(path, values)
    else:
        getattr(np, how)(path, x=values)
    dataset = open_dataset(str(path), ONE)
    assert np.array_equal(np.concatenate([dataset.load(i)["x"] for i in range(4)]), VALUES)
    assert all(dataset.load(i)["x"].flags.c_contiguous for i in range(4))


def test_a_stored_npz_is_not_unpacked(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", labels=np.arange(4), x=VALUES)
    stored = stored_arrays.open_file(tmp_path / "d.npz", "x")["x"]
    assert isinstance(stored.read().base.base, np.memmap)
    assert np.array_equal(stored.read(), VALUES)


def test_a_file_cut_short_after_it_was_opened_is_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", VALUES)
    dataset = open_dataset(str(tmp_path / "d.npy"), ONE)
    os.truncate(tmp_path / "d.npy", (tmp_path / "d.npy").stat().st_size - 4)
    assert np.array_equal(dataset.load(0)["x"], VALUES[:1])
    with pytest.raises(DataError, match=r"d\.npy: cannot be read as NumPy arrays"):
        dataset.load(len(VALUES) - 1)


def test_labels_of_an_npz_are_class_indices(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=VALUES, labels=np.array([3, 1, 2, 0], np.uint8))
    assert open_dataset(str(tmp_path / "d.npz"), ONE).labels == (3, 1, 2, 0)


def test_labels_are_an_input_when_the_model_has_one_of_that_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=VALUES, labels=VALUES)
    inputs = (*ONE, TensorSpec(name="labels", dtype="float32", shape=("n", 3)))
    dataset = open_dataset(str(tmp_path / "d.npz"), inputs)
    assert dataset.labels is None
    assert dataset.load(1)["labels"].tolist() == [[3, 4, 5]]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (np.arange(3), "labels have shape"),
        (np.zeros((4, 1), np.int64), "labels have shape"),
        (np.zeros(4, np.float32), "labels are float32"),
        (np.array(["a"] * 4), "labels are str"),
        (np.array([0, -1, 1, 2]), "a label is -1"),
    ],
)
def test_labels_that_are_not_class_indices_are_refused(tmp_path: Path, labels: np.ndarray, reason: str) -> None:
    np.savez(tmp_path / "d.npz", x=VALUES, labels=labels)
    assert reason in refusal(tmp_path / "d.npz")


def test_arrays_of_different_lengths_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=VALUES, y=VALUES[:2])
    assert "have different numbers of samples: x 4, y 2" in refusal(tmp_path / "d.npz", TWO)


def test_an_array_without_axes_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.float32(1))
    assert "x is a scalar" in refusal(tmp_path / "d.npz")


def test_an_npy_for_a_model_with_two_inputs_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", VALUES)
    assert "the model has 2: x, y. Give a .npz" in refusal(tmp_path / "d.npy", TWO)


@pytest.mark.parametrize("name", ["d.npy", "d.npz"])
def test_python_objects_are_never_unpickled(tmp_path: Path, name: str) -> None:
    objects = np.array([{"run": "me"}, None], dtype=object)
    if name == "d.npy":
        np.save(tmp_path / name, objects, allow_pickle=True)
    else:
        np.savez(tmp_path / name, x=objects)
    assert "contains Python objects" in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["d.npy", "d.npz"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04broken", b"\x93NUMPY\x01\x00\xff\xff{", b"\x80\x04K\x01."])
def test_a_file_that_is_something_else_is_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert f"{name}: cannot be read as NumPy arrays" in refusal(tmp_path / name)


def test_a_zip_named_npy_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "d.npy").open("wb") as file:
        np.savez(file, x=VALUES)
    assert "cannot be read as NumPy arrays" in refusal(tmp_path / "d.npy")


def test_an_npz_member_that_is_not_an_array_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "its member readme.txt is not an array" in refusal(tmp_path / "d.npz")


@pytest.mark.parametrize("how", ["npy", "savez", "savez_compressed"])
def test_a_truncated_file_is_refused_when_it_is_opened(tmp_path: Path, how: str) -> None:
    path = tmp_path / ("d.npy" if how == "npy" else "d.npz")
    if how == "npy":
        np.save(path, VALUES)
    else:
        getattr(np, how)(path, x=VALUES)
    path.write_bytes(path.read_bytes()[:-20])
    assert str(path) in refusal(path)


def test_corrupt_compressed_values_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).random((40, 3), np.float32))
    content = bytearray(path.read_bytes())
    content[300:310] = bytes(10)
    path.write_bytes(content)
    assert "cannot be read as NumPy arrays" in refusal(path)


def damage(path: Path, part: bytes) -> None:
    """Flip one bit of the first byte of `part` in the file; sizes and checksums stay as they are."""
    content = path.read_bytes()
    place = content.index(part)
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


LARGE = np.random.default_rng(0).random((100, 3000), np.float32)  # more than is read at once
WIDE = (TensorSpec(name="x", dtype="float32", shape=("n", 3000)),)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("rows", [1, 100])
def test_a_stored_array_that_is_damaged_is_refused_by_file_and_name(tmp_path: Path, rows: int, order: str) -> None:
    values = np.asarray(LARGE[:rows], order=order)
    np.savez(tmp_path / "d.npz", labels=np.arange(rows), x=values)
    damage(tmp_path / "d.npz", values.tobytes("A")[-12:])
    assert "d.npz: x.npy is damaged: its values do not match the checksum" in refusal(tmp_path / "d.npz", WIDE)


def test_labels_that_are_damaged_are_refused(tmp_path: Path) -> None:
    labels = np.arange(2000)
    np.savez(tmp_path / "d.npz", x=np.zeros((2000, 3), np.float32), labels=labels)
    damage(tmp_path / "d.npz", labels[-1:].tobytes())
    assert "d.npz: labels.npy is damaged" in refusal(tmp_path / "d.npz")


def test_a_damaged_header_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.asarray(LARGE, order="F"))
    content = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(content.replace(b"'fortran_order': True, ", b"'fortran_order': False,"))
    assert "d.npz: x.npy is damaged" in refusal(tmp_path / "d.npz", WIDE)


@pytest.mark.parametrize("extra", [b"", bytes(9000)], ids=["", "more than the array"])
def test_a_compressed_array_that_is_damaged_is_refused_by_file_and_name(tmp_path: Path, extra: bytes) -> None:
    content = io.BytesIO()
    np.save(content, LARGE)
    with zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=0) as archive:
        archive.writestr("x.npy", content.getvalue() + extra)
    damage(tmp_path / "d.npz", LARGE[-1:].tobytes())  # level 0 stores values unchanged, so only the checksum can tell
    assert "d.npz: x.npy: cannot be read as NumPy arrays: Bad CRC-32" in refusal(tmp_path / "d.npz", WIDE)


@pytest.mark.parametrize("member", ["x", "label"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_file_in_a_folder_is_refused_and_skip_bad_leaves_it_out(
    tmp_path: Path, save: Callable[..., None], member: str
) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.npz", x=LARGE[i], label=np.array(i))
    with zipfile.ZipFile(tmp_path / "1.npz") as archive:
        info = archive.getinfo(f"{member}.npy")
    content = (tmp_path / "1.npz").read_bytes()
    name, extra = struct.unpack_from("<HH", content, info.header_offset + 26)
    start = info.header_offset + 30 + name + extra
    damage(tmp_path / "1.npz", content[start : start + info.compress_size][-8:])
    with pytest.raises(DataError, match=rf"1\.npz: .*{member}\.npy"):
        list(batches(open_dataset(str(tmp_path), WIDE)))
    dataset = open_dataset(str(tmp_path), WIDE, skip_bad=True)
    assert (dataset.ids, dataset.labels) == (("0.npz", "2.npz"), (0, 2))
    assert [dataset.load(i)["x"][0, 0] for i in range(2)] == [LARGE[0, 0], LARGE[2, 0]]
    assert any("left out 1 of 3" in note and "1.npz" in note for note in dataset.warnings)


def test_an_array_that_announces_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 3)})
    with zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header.getvalue())
    assert "truncated: the header announces 12000000000000 bytes of values" in refusal(tmp_path / "d.npz")


def test_a_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_arrays, "MAX_UNPACKED", 1 << 20)
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros((200_000, 3), np.float32))
    assert "unpacks to more than" in refusal(tmp_path / "d.npz")


def test_a_folder_of_npy_is_one_sample_per_file_in_the_order_of_names(tmp_path: Path) -> None:
    for name, row in (("b", 1), ("a", 0), ("c", 2)):
        np.save(tmp_path / f"{name}.npy", VALUES[row])
    dataset = open_dataset(str(tmp_path), ONE)
    assert dataset.ids == ("a.npy", "b.npy", "c.npy")
    assert [dataset.load(i)["x"][0, 0] for i in range(3)] == [0, 3, 6]
    assert dataset.batched


def test_a_folder_of_npz_feeds_several_inputs_and_labels(tmp_path: Path) -> None:
    for i in range(3):
        np.savez_compressed(tmp_path / f"{i}.npz", x=VALUES[i], y=VALUES[i] + 1, label=5 - i)
    dataset = open_dataset(str(tmp_path), TWO)
    assert dataset.labels == (5, 4, 3)
    assert dataset.load(2)["y"].tolist() == [[7, 8, 9]]


def test_a_folder_where_one_file_has_no_label_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=VALUES[0], labels=1)
    np.savez(tmp_path / "b.npz", x=VALUES[1])
    assert "b.npz: no label" in refusal(tmp_path)


def test_the_file_of_a_wrong_sample_in_a_folder_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", VALUES[0])
    np.save(tmp_path / "b.npy", np.zeros(4, np.float32))
    assert "b.npy: x has shape [4]" in refusal(tmp_path)


def test_skip_bad_leaves_out_an_unreadable_file_with_its_label(tmp_path: Path) -> None:
    for i in range(3):
        np.savez(tmp_path / f"{i}.npz", x=VALUES[i], labels=i)
    (tmp_path / "1.npz").write_bytes(b"not a zip")
    assert "1.npz: cannot be read" in refusal(tmp_path)
    dataset = open_dataset(str(tmp_path), ONE, skip_bad=True)
    assert dataset.ids == ("0.npz", "2.npz")
    assert dataset.labels == (0, 2)
    assert any("1.npz" in note for note in dataset.warnings)


def test_a_note_says_that_a_recipe_is_not_applied_to_arrays(tmp_path: Path) -> None:
    from trtopt.data import load_recipe

    np.save(tmp_path / "d.npy", VALUES)
    dataset = open_dataset(str(tmp_path / "d.npy"), ONE, recipe=load_recipe("imagenet"))
    assert any("imagenet is not applied" in note for note in dataset.warnings)
