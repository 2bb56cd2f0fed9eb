"""8-bit outputs: images are numbers, and maps of classes are not."""

from __future__ import annotations

import numpy as np
import pytest

from trtopt.compare.kinds import Opening, exact, values
from trtopt.compare.measures.outputs import Outputs


def opening(array: np.ndarray) -> Opening:
    return Opening(name="y", first=Outputs(reference={"y": array}, candidate={"y": array}, indices=(0, 1)))


def test_an_image_of_many_levels_is_compared_as_numbers() -> None:
    image = opening(np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16)).astype(np.uint8))
    assert values.reader(image) is not None
    assert exact.reader(image) is None


@pytest.mark.parametrize("shape", [(2, 16, 16), (2, 1, 16, 16)])
def test_a_map_of_few_classes_is_compared_for_equality(shape: tuple[int, ...]) -> None:
    classes = opening(np.random.default_rng(0).integers(0, 21, shape).astype(np.uint8))
    assert values.reader(classes) is None
    assert exact.reader(classes) is not None


def test_bytes_without_spatial_axes_are_compared_for_equality() -> None:
    rows = opening(np.random.default_rng(0).integers(0, 256, (2, 400)).astype(np.uint8))
    assert exact.reader(rows) is not None


def test_one_level_of_difference_is_no_error_of_an_image() -> None:
    image = np.random.default_rng(0).integers(1, 255, (2, 3, 16, 16)).astype(np.uint8)
    reader = values.reader(opening(image))
    assert reader is not None
    reader.add(Outputs(reference={"y": image}, candidate={"y": image + np.uint8(1)}, indices=(0, 1)))
    assert reader.drift(("a", "b")).values["sqnr"] > 40
