"""The digits sample: its pictures and arrays open, agree with each other, do not overlap, and score as they should."""

from pathlib import Path

import numpy as np
import pytest

from trtopt.data import Dataset, batches, open_dataset
from trtopt.types import TensorSpec

ROOT = Path(__file__).resolve().parents[2]
INPUTS = (TensorSpec(name="input", dtype="float32", shape=("batch", 1, 28, 28)),)


@pytest.fixture(scope="module")
def pictures() -> Dataset:
    return open_dataset(str(ROOT / "calibration" / "digits"), INPUTS)


@pytest.fixture(scope="module")
def evaluation() -> Dataset:
    return open_dataset(str(ROOT / "samples" / "digits" / "eval.npz"), INPUTS)


def everything(dataset: Dataset) -> np.ndarray:
    return np.concatenate([batch.feed["input"] for batch in batches(dataset, 64)])


def test_the_calibration_pictures_are_twenty_of_each_digit(pictures: Dataset) -> None:
    assert len(pictures) == 200
    assert pictures.labels is not None
    assert np.bincount(pictures.labels).tolist() == [20] * 10


def test_the_recipe_of_the_folder_is_used_and_said(pictures: Dataset) -> None:
    assert any("recipe.toml" in note for note in pictures.notes)


def test_the_evaluation_set_is_a_hundred_of_each_digit(evaluation: Dataset) -> None:
    assert evaluation.labels is not None
    assert np.bincount(evaluation.labels).tolist() == [100] * 10


def test_both_hold_pixels_over_255_in_float32(pictures: Dataset, evaluation: Dataset) -> None:
    possible = np.arange(256, dtype=np.float32) * np.float32(0.00392156862745098)
    for dataset in (pictures, evaluation):
        values = everything(dataset)
        assert values.shape[1:] == (1, 28, 28)
        assert np.isin(values, possible).all()
        assert values.max() == 1


def test_no_calibration_picture_is_an_evaluation_picture(pictures: Dataset, evaluation: Dataset) -> None:
    calibration = {x.tobytes() for x in everything(pictures)}
    assert len(calibration) == 200
    assert not calibration & {x.tobytes() for x in everything(evaluation)}


def test_the_network_reads_97_percent_of_both(pictures: Dataset, evaluation: Dataset) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(ROOT / "samples" / "digits" / "model.onnx")
    for dataset in (pictures, evaluation):
        read = session.run(None, {"input": everything(dataset)})[0].argmax(axis=1)
        assert np.mean(read == np.array(dataset.labels)) >= 0.97


def test_the_network_keeps_its_batch_normalization_and_a_dynamic_batch() -> None:
    import onnx

    graph = onnx.load(ROOT / "samples" / "digits" / "model.onnx").graph
    assert [node.op_type for node in graph.node].count("BatchNormalization") == 7
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
