"""The digits sample: its images and arrays open, have the same form, do not overlap, and are classified correctly."""

from pathlib import Path

import numpy as np
import pytest

from trtopt.data import Dataset, batches, open_dataset
from trtopt.types import TensorSpec

ROOT = Path(__file__).resolve().parents[2]
INPUTS = (TensorSpec(name="input", dtype="float32", shape=("batch", 1, 28, 28)),)


@pytest.fixture(scope="module")
def images() -> Dataset:
    return open_dataset(str(ROOT / "calibration" / "digits"), INPUTS)


@pytest.fixture(scope="module")
def evaluation() -> Dataset:
    return open_dataset(str(ROOT / "samples" / "digits" / "eval.npz"), INPUTS)


def everything(dataset: Dataset) -> np.ndarray:
    return np.concatenate([batch.feed["input"] for batch in batches(dataset, 64)])


def test_the_calibration_images_are_twenty_of_each_digit(images: Dataset) -> None:
    assert len(images) == 200
    assert images.labels is not None
    assert np.bincount(images.labels).tolist() == [20] * 10


def test_the_recipe_of_the_folder_is_used_with_a_note(images: Dataset) -> None:
    assert any("recipe.toml" in note for note in images.notes)


def test_the_evaluation_set_is_a_hundred_of_each_digit(evaluation: Dataset) -> None:
    assert evaluation.labels is not None
    assert np.bincount(evaluation.labels).tolist() == [100] * 10


def test_both_contain_pixels_over_255_in_float32(images: Dataset, evaluation: Dataset) -> None:
    possible = np.arange(256, dtype=np.float32) * np.float32(0.00392156862745098)
    for dataset in (images, evaluation):
        values = everything(dataset)
        assert values.shape[1:] == (1, 28, 28)
        assert np.isin(values, possible).all()
        assert values.max() == 1


def test_no_calibration_image_is_an_evaluation_image(images: Dataset, evaluation: Dataset) -> None:
    calibration = {x.tobytes() for x in everything(images)}
    assert len(calibration) == 200
    assert not calibration & {x.tobytes() for x in everything(evaluation)}


def test_the_network_reads_97_percent_of_both(images: Dataset, evaluation: Dataset) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(ROOT / "samples" / "digits" / "model.onnx")
    for dataset in (images, evaluation):
        read = session.run(None, {"input": everything(dataset)})[0].argmax(axis=1)
        assert np.mean(read == np.array(dataset.labels)) >= 0.97


def test_the_network_keeps_its_batch_normalization_and_a_dynamic_batch() -> None:
    import onnx

    graph = onnx.load(ROOT / "samples" / "digits" / "model.onnx").graph
    assert [node.op_type for node in graph.node].count("BatchNormalization") == 7
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
