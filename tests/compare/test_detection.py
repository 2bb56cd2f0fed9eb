"""Detections: matching of boxes, and recognition of outputs with boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtopt.compare.measures.boxes import Boxes, Match, matches
from trtopt.compare.measures.outputs import Outputs
from trtopt.compare.metrics import Metrics
from trtopt.errors import ModelError
from trtopt.types import OutputDrift

Array = npt.NDArray[Any]
Made = Mapping[str, Array]
BOX, NEAR, FAR = (0.0, 0.0, 10.0, 10.0), (1.0, 0.0, 11.0, 10.0), (50.0, 50.0, 60.0, 60.0)
IOU = 90 / 110
"""That of BOX and NEAR."""


def made(*boxes: tuple[float, ...], scores: Sequence[float] = (), labels: Sequence[int] = ()) -> Made:
    """Return the outputs of one sample in the form of torchvision: no batch axis, one row per box."""
    count = len(boxes)
    return {
        "boxes": np.array(boxes, np.float32).reshape(count, 4),
        "labels": np.array(labels or [1] * count, np.int64),
        "scores": np.array(scores or [0.9] * count, np.float32),
    }


def drifts(*pairs: tuple[Made, Made], asked: Mapping[str, str] | None = None) -> tuple[OutputDrift, ...]:
    """Return the drift of samples that run one by one; a pair is FP32's and the candidate's outputs of a sample."""
    metrics = Metrics(asked or {})
    for i, (reference, candidate) in enumerate(pairs):
        metrics.add(Outputs(reference=reference, candidate=candidate, indices=(i,)))
    return metrics.drifts([f"{i}.png" for i in range(len(pairs))])


def one(*pairs: tuple[Made, Made]) -> OutputDrift:
    (found,) = drifts(*pairs)
    assert (found.output, found.kind) == ("boxes", "detection")
    return found


TWO = made(BOX, FAR)


def test_the_same_boxes_match() -> None:
    found = one((TWO, TWO))
    assert found.values == {
        "matched": 100.0,
        "extra": 0.0,
        "iou": 1.0,
        "score_error": 0.0,
        "lost": 0.0,
        "nonfinite": 0.0,
    }
    assert found.worst == ()


def test_a_missed_box_and_an_extra_one_are_counted_over_all_samples() -> None:
    found = one((TWO, made(NEAR)), (TWO, made(FAR, BOX, (20.0, 20.0, 30.0, 30.0))))
    assert found.values["matched"] == pytest.approx(100 * 3 / 4)
    assert found.values["extra"] == pytest.approx(100 * 1 / 4)
    assert found.values["iou"] == pytest.approx((IOU + 1 + 1) / 3)
    assert [(each.sample, each.note) for each in found.worst] == [
        ("0.png", "1 of 2 boxes missed, 0 extra"),
        ("1.png", "0 of 2 boxes missed, 1 extra"),
    ]


def test_boxes_of_different_classes_do_not_match() -> None:
    values = one((made(BOX, FAR, labels=[1, 2]), made(BOX, FAR, labels=[1, 3]))).values
    assert (values["matched"], values["extra"]) == (50.0, 50.0)


def test_boxes_below_the_threshold_do_not_need_a_match() -> None:
    values = one((made(BOX, FAR, scores=[0.9, 0.29]), made(BOX, (20, 20, 30, 30), scores=[0.9, 0.29]))).values
    assert (values["matched"], values["extra"]) == (100.0, 0.0)


def test_a_box_is_missed_when_its_score_falls_below_half_the_threshold() -> None:
    for score, share in ((0.29, 100.0), (0.15, 100.0), (0.149, 50.0)):
        strong, weak = made(BOX, FAR, scores=[0.9, 0.31]), made(BOX, FAR, scores=[0.9, score])
        assert one((strong, weak)).values["matched"] == share
        assert one((weak, strong)).values["extra"] == 100.0 - share


def test_samples_without_boxes_have_no_metrics() -> None:
    none = made()
    values = one((TWO, TWO), (none, none)).values
    assert values["matched"] == 100.0
    found = drifts((none, none), asked={"boxes": "detection"})[0]
    assert found.values == {"extra": 0.0, "lost": 0.0, "nonfinite": 0.0}
    assert found.counts == {"samples": 1, "boxes": 0}


def test_a_candidate_without_boxes_has_no_extra_ones() -> None:
    assert one((TWO, made())).values == {"matched": 0.0, "extra": 0.0, "lost": 0.0, "nonfinite": 0.0}


def boxes(*corners: tuple[float, ...], scores: Sequence[float] = (), classes: Sequence[int] = ()) -> Boxes:
    count = len(corners)
    return Boxes(
        corners=np.array(corners, np.float64).reshape(count, 4),
        scores=np.array(scores or [1.0] * count),
        classes=np.array(classes or [0] * count, np.float64),
    )


def test_the_highest_score_takes_its_best_box_first() -> None:
    # The second box overlaps both of FP32's boxes, BOX more. It comes first and takes it, so the first one finds none.
    truth = boxes(BOX, (4.0, 0.0, 14.0, 10.0))
    assert matches(truth, boxes(BOX, NEAR, scores=[0.5, 0.9])) == [Match(0, 1, pytest.approx(IOU))]
    assert matches(truth, boxes(BOX, NEAR, scores=[0.9, 0.5])) == [Match(0, 0, 1.0), Match(1, 1, pytest.approx(7 / 13))]


def test_a_box_is_matched_once() -> None:
    assert len(matches(boxes(BOX), boxes(BOX, BOX, NEAR))) == 1


def test_half_an_overlap_is_enough() -> None:
    assert matches(boxes((0.0, 0.0, 2.0, 1.0)), boxes((0.0, 0.0, 1.0, 1.0))) == [Match(0, 0, 0.5)]
    assert matches(boxes((0.0, 0.0, 2.0, 1.0)), boxes((0.0, 0.0, 0.999, 1.0))) == []


def test_boxes_without_an_area_match_only_themselves() -> None:
    line = boxes((1.0, 1.0, 1.0, 4.0))
    assert [match.iou for match in matches(line, line)] == [1.0]
    assert matches(line, boxes((1.0, 1.0, 1.0, 5.0))) == []


CORNERS = st.tuples(*[st.integers(0, 6)] * 4).map(lambda c: (c[0], c[1], c[0] + c[2], c[1] + c[3]))
SETS = st.lists(st.tuples(CORNERS, st.integers(0, 10), st.integers(0, 1)), max_size=7)


@settings(max_examples=80)
@given(SETS, SETS)
def test_matching_equals_plain_loops(truth: list[Any], own: list[Any]) -> None:
    found = matches(
        boxes(*[t[0] for t in truth], classes=[t[2] for t in truth]),
        boxes(*[o[0] for o in own], scores=[o[1] for o in own], classes=[o[2] for o in own]),
    )
    free, expected = list(range(len(truth))), []
    for box, _, label in sorted(own, key=lambda o: -o[1]):
        overlaps = {i: overlap(box, truth[i][0]) for i in free if truth[i][2] == label}
        best = max(overlaps, key=lambda i: (overlaps[i], -i), default=None)
        if best is not None and overlaps[best] >= 0.5:
            free.remove(best)
            expected.append(overlaps[best])
    assert sorted(pair.iou for pair in found) == pytest.approx(sorted(expected))


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    wide, high = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    shared = max(wide, 0) * max(high, 0)
    union = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - shared
    return 1.0 if a == b else shared / union if union else 0.0


def test_the_number_of_boxes_may_differ_and_the_other_outputs_are_read_with_them() -> None:
    metrics = Metrics({})
    metrics.add(Outputs(reference=TWO, candidate=made(BOX), indices=(0,)))
    assert [drift.output for drift in metrics.drifts(["a"])] == ["boxes"]
    assert metrics.notes() == ["boxes is read as detections, with scores, labels"]


def test_masks_are_compared_with_those_of_the_matching_box() -> None:
    first, second = np.eye(4, dtype=np.float32)[None], 1 - np.eye(4, dtype=np.float32)[None]
    reference = {**made(BOX, FAR), "masks": np.stack([first, second])}
    candidate = {**made(FAR, BOX), "masks": np.stack([second, first])}
    metrics = Metrics({})
    metrics.add(Outputs(reference=reference, candidate=candidate, indices=(0,)))
    (found,) = metrics.drifts(["a"])
    assert (found.output, found.values["attached"]) == ("boxes", 1.0)
    assert metrics.notes() == ["boxes is read as detections, with scores, labels; compared where boxes match: masks"]


def padded(*samples: Made, rows: int = 4) -> dict[str, Array]:
    """Return a batch with a fixed number of rows, the names of TensorFlow's detectors, and classes as floats."""
    found = {
        "detection_boxes": np.zeros((len(samples), rows, 4), np.float32),
        "detection_scores": np.zeros((len(samples), rows), np.float32),
        "detection_classes": np.zeros((len(samples), rows), np.float32),
        "num_detections": np.array([len(sample["scores"]) for sample in samples], np.float32),
    }
    for i, sample in enumerate(samples):
        count = len(sample["scores"])
        found["detection_boxes"][i, :count] = sample["boxes"]
        found["detection_scores"][i, :count] = sample["scores"]
        found["detection_classes"][i, :count] = sample["labels"]
    return found


def single(*samples: Made, rows: int = 4) -> dict[str, Array]:
    """Return the same as one output: corners, score, class."""
    parts = padded(*samples, rows=rows)
    one = [parts["detection_boxes"], parts["detection_scores"][..., None], parts["detection_classes"][..., None]]
    return {"output0": np.concatenate(one, axis=2)}


SAMPLES = (TWO, made(), made(BOX, NEAR, FAR, labels=[1, 2, 3]))
CHANGED = (made(NEAR), made(), made(BOX, NEAR, FAR, labels=[1, 3, 3]))


@pytest.mark.parametrize("form", [padded, single])
def test_every_form_of_the_same_boxes_has_the_same_metrics_however_they_are_batched(form: Any) -> None:
    expected = one(*zip(SAMPLES, CHANGED, strict=True))
    for cuts in ([3], [1, 1, 1], [2, 1]):
        metrics, start = Metrics({}, apart=True), 0
        for count in cuts:
            at = slice(start, start + count)
            metrics.add(
                Outputs(
                    reference=form(*SAMPLES[at]),
                    candidate=form(*CHANGED[at]),
                    indices=tuple(range(start, start + count)),
                )
            )
            start += count
        (found,) = metrics.drifts([f"{i}.png" for i in range(3)])
        assert found.kind == "detection"
        assert found.values == expected.values
        assert [each.note for each in found.worst] == [each.note for each in expected.worst]


def test_a_number_of_detections_that_is_nan_makes_the_sample_bad() -> None:
    reference, candidate = padded(TWO), padded(TWO)
    candidate["num_detections"][0] = np.nan
    found = drifts((reference, reference), (reference, candidate))[0]
    assert (found.values["nonfinite"], found.first_bad) == (1.0, "1.png")


def test_rows_beyond_the_number_of_detections_are_ignored() -> None:
    reference, candidate = padded(TWO), padded(TWO)
    candidate["detection_boxes"][0, 2:] = np.nan
    (found,) = drifts((reference, candidate))
    assert found.values == {
        "matched": 100.0,
        "extra": 0.0,
        "iou": 1.0,
        "score_error": 0.0,
        "lost": 0.0,
        "nonfinite": 0.0,
    }


@pytest.mark.parametrize("part", ["boxes", "scores"])
@pytest.mark.parametrize("broken", ["FP32", "candidate"])
def test_a_sample_with_nan_is_named_and_not_counted(part: str, broken: str) -> None:
    spoiled = {name: array.copy() for name, array in TWO.items()}
    spoiled[part][0] = np.nan
    found = one((TWO, TWO), (spoiled, TWO) if broken == "FP32" else (TWO, spoiled))
    assert found.values == {
        "matched": 100.0,
        "extra": 0.0,
        "iou": 1.0,
        "score_error": 0.0,
        "lost": 0.0,
        "nonfinite": 1.0,
    }
    assert found.first_bad == "1.png" + ("; FP32 itself has it in 1" if broken == "FP32" else "")


ONE = made(BOX)
CENTRES = {**TWO, "boxes": np.array([[5, 5, 2, 2], [55, 55, 4, 4]], np.float32)}


@pytest.mark.parametrize(
    "outputs",
    [
        {"boxes": TWO["boxes"]},  # no scores
        {"points": TWO["boxes"], "scores": TWO["scores"]},  # no name
        {**TWO, "scores": TWO["scores"] * 40},  # not probabilities
        CENTRES,  # centres and sizes
        ONE,  # one row in every sample: any four numbers
        {"y": np.random.default_rng(0).normal(size=(1, 20, 6)).astype(np.float32)},
        {"y": np.zeros((1, 20, 6), np.float32)},
        {"y": np.array([[[0, 0, 9, 9, 0.9, 1.5], [0, 0, 9, 9, 0.9, 1]]], np.float32)},  # not a class index
    ],
)
def test_ambiguous_outputs_are_not_read_as_boxes(outputs: Made) -> None:
    assert {drift.kind for drift in drifts((outputs, outputs))} <= {"values", "exact", "scores"}


def test_rows_that_are_not_boxes_count_as_wrong_when_their_number_differs() -> None:
    boxes = drifts((CENTRES, ONE))[0]
    assert (boxes.kind, boxes.values["sqnr_min"] <= 0) == ("values", True)


def test_boxes_without_scores_have_a_score_of_1_when_the_user_names_the_kind() -> None:
    corners = {"points": TWO["boxes"]}
    (found,) = drifts((corners, {"points": TWO["boxes"][:1]}), asked={"points": "detection"})
    assert found.values["matched"] == 50.0


def test_centres_and_sizes_are_refused_when_the_user_names_the_kind() -> None:
    with pytest.raises(ModelError, match="output boxes cannot be read as detection: its boxes are not corners"):
        drifts((CENTRES, CENTRES), asked={"boxes": "detection"})


def test_scores_with_a_kind_of_their_own_are_not_read_with_the_boxes() -> None:
    found = drifts((TWO, TWO), asked={"scores": "values", "boxes": "detection"})
    assert [(drift.output, drift.kind) for drift in found] == [("boxes", "detection"), ("scores", "values")]


def test_outputs_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ModelError, match=r"output scores does not fit the boxes of boxes: their shapes are \[2\]"):
        drifts((TWO, {**TWO, "boxes": TWO["boxes"][:1]}), asked={"boxes": "detection"})
