"""Parts of different scale in one output: each has its own cosine, so a larger part does not hide its errors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from trtopt.compare.gate import judge
from trtopt.compare.measures.outputs import Outputs
from trtopt.compare.measures.parts import Parts
from trtopt.compare.metrics import Metrics
from trtopt.types import OutputDrift

Floats = npt.NDArray[np.float32]
RANDOM = np.random.default_rng(0)
BOXES = RANDOM.uniform(10, 600, (20, 4, 64)).astype(np.float32)
SCORES = (RANDOM.uniform(0, 1, (20, 5, 64)) ** 8).astype(np.float32)
COEFFICIENTS = RANDOM.normal(0, 3, (20, 6, 64)).astype(np.float32)


def drift(reference: Floats, candidate: Floats, *, one_by_one: bool = False) -> tuple[OutputDrift, str]:
    metrics = Metrics({"output0": "values"}, apart=not one_by_one)
    size = 1 if one_by_one else 8
    for start in range(0, len(reference), size):
        rows = slice(start, min(start + size, len(reference)))
        indices = tuple(range(rows.start, rows.stop))
        metrics.add(
            Outputs(reference={"output0": reference[rows]}, candidate={"output0": candidate[rows]}, indices=indices)
        )
    (found,) = metrics.drifts([str(i) for i in range(len(reference))])
    return found, " ".join(metrics.notes())


def failed(found: OutputDrift) -> set[str]:
    return {each.metric for each in judge([found], (), 20) if each.verdict == "fail"}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("one_by_one", [False, True])
def test_ruined_class_scores_do_not_hide_behind_boxes(transposed: bool, one_by_one: bool) -> None:
    reference = np.concatenate([BOXES, SCORES], axis=1)
    candidate = np.concatenate([BOXES, SCORES[:, ::-1]], axis=1)
    if transposed:
        reference, candidate = reference.transpose(0, 2, 1), candidate.transpose(0, 2, 1)
    found, note = drift(reference, candidate, one_by_one=one_by_one)
    assert found.values["cosine"] > 0.999
    assert failed(found) == {"cosine_part", "sqnr_part"}
    assert f"channels 4-8 of axis {2 if transposed else 1}" in note
    assert "boxes" in note


def test_a_single_score_beside_boxes_is_a_part() -> None:
    reference = np.concatenate([BOXES, SCORES[:, :1]], axis=1)
    candidate = np.concatenate([BOXES, np.roll(SCORES[:, :1], 1, axis=2)], axis=1)
    assert failed(drift(reference, candidate)[0]) == {"cosine_part", "sqnr_part"}


def test_scores_do_not_hide_behind_two_larger_parts() -> None:
    reference = np.concatenate([BOXES, SCORES / 2, COEFFICIENTS], axis=1)
    candidate = np.concatenate([BOXES, SCORES[:, ::-1] / 2, COEFFICIENTS], axis=1)
    assert failed(drift(reference, candidate)[0]) == {"cosine_part", "sqnr_part"}


def test_rare_classes_whose_probabilities_hardly_move_are_harmless() -> None:
    rare = SCORES * np.float32(1e-3)
    reference = np.concatenate([BOXES, SCORES, rare], axis=1)
    candidate = np.concatenate([BOXES, SCORES, rare[:, ::-1]], axis=1)
    assert not failed(drift(reference, candidate)[0])


def test_a_few_dead_channels_of_a_feature_map_are_not_a_part() -> None:
    reference = RANDOM.normal(0, 3, (20, 32, 16)).astype(np.float32)
    reference[:, 5] *= 1e-3
    candidate = reference + RANDOM.normal(0, 0.01, reference.shape).astype(np.float32)
    assert not failed(drift(reference, candidate)[0])


def test_channels_of_a_similar_scale_are_one_part() -> None:
    reference = RANDOM.normal(0, np.geomspace(1, 50, 16)[:, None], (20, 16, 8)).astype(np.float32)
    found, note = drift(reference, reference)
    assert "cosine_part" not in found.values
    assert not note


def test_the_parts_of_a_sample_do_not_depend_on_the_batch() -> None:
    reference = np.concatenate([BOXES, SCORES], axis=1)
    candidate = reference * np.float32(1.01)
    assert drift(reference, candidate)[0] == drift(reference, candidate, one_by_one=True)[0]


def test_an_axis_whose_length_changes_is_one_of_positions() -> None:
    parts = Parts()
    for length in (4, 6):
        values = np.geomspace(1, 1e4, 8 * length, dtype=np.float32).reshape(length, 8)
        parts.add(values, values)
    assert {part.axis for part in parts.found()} <= {2}


def test_channels_are_named_as_ranges() -> None:
    parts = Parts()
    values = np.full((9, 4), 1000, np.float32)
    values[[0, 1, 2, 5, 7, 8]] = 10
    parts.add(values, values)
    assert [str(part) for part in parts.found()] == ["3-4, 6", "0-2, 5, 7-8"]


@pytest.mark.parametrize("shape", [(3, 9, 8, 8), (9, 8, 8), (8, 8, 3, 9), (2, 8, 8, 9), (9, 64)])
def test_the_channels_of_a_raw_head_are_found_in_any_layout(shape: tuple[int, ...]) -> None:
    axis = 1 + shape.index(9)
    scale = np.where(np.arange(9) < 4, 300, 0.2).reshape([9 if i == axis else 1 for i in range(len(shape) + 1)])
    reference = (RANDOM.uniform(0.5, 1.5, (20, *shape)) * scale).astype(np.float32)
    candidate = np.where(scale > 1, reference, 0).astype(np.float32)
    assert failed(drift(reference, candidate)[0]) >= {"cosine_part"}
    assert not failed(drift(reference, reference)[0])


def test_the_empty_border_of_a_map_is_not_a_part() -> None:
    reference = RANDOM.normal(0, 1, (20, 4, 16, 24)).astype(np.float32)
    reference[:, :, :3] *= 1e-3
    candidate = reference + RANDOM.normal(0, 0.01, reference.shape).astype(np.float32)
    assert not failed(drift(reference, candidate)[0])
