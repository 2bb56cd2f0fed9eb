"""Segmentation: recognition of maps of classes, and agreement and mIoU equal to plain numpy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import softmax

from trtopt.compare.gate import judge
from trtopt.compare.measures.outputs import Outputs
from trtopt.compare.metrics import Metrics
from trtopt.errors import ModelError
from trtopt.types import OutputDrift

Array = npt.NDArray[Any]
QUICK = settings(max_examples=40)


def measure(
    reference: Array, candidate: Array, *, name: str = "seg", cuts: Sequence[int] = (), kind: str = ""
) -> OutputDrift:
    metrics = Metrics({name: kind} if kind else {}, apart=True)
    for start, end in itertools.pairwise([0, *sorted(cuts), len(reference)]):
        x, y = ({name: array[start:end]} for array in (reference, candidate))
        metrics.add(Outputs(reference=x, candidate=y, indices=tuple(range(start, end))))
    (found,) = metrics.drifts([f"{i}.png" for i in range(len(reference))])
    return found


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@st.composite
def maps(draw: st.DrawFn) -> tuple[Array, Array, list[int]]:
    """Draw classes of FP32 and of the candidate, [n, height, width], and the rows at which they are cut."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(2, 4), st.integers(2, 4)))
    classes = hnp.arrays(np.int32, shape, elements=st.integers(0, 5))
    return draw(classes), draw(classes), [cut for cut in range(1, shape[0]) if draw(st.booleans())]


def by_hand(x: Array, y: Array) -> dict[str, float]:
    unions = {c: ((x == c) | (y == c)).sum() for c in range(10)}
    overlaps = [((x == c) & (y == c)).sum() / union for c, union in unions.items() if union]
    return {"pixels": 100 * float((x == y).mean()), "miou": 100 * float(np.mean(overlaps))}


@QUICK
@given(maps())
def test_agreement_and_miou_equal_numpy_on_all_samples_at_once(drawn: tuple[Array, Array, list[int]]) -> None:
    x, y, cuts = drawn
    values = measure(x, y, cuts=cuts).values
    assert {name: values[name] for name in by_hand(x, y)} == pytest.approx(by_hand(x, y))


@QUICK
@given(maps())
def test_scores_and_classes_of_the_same_pixels_agree_alike(drawn: tuple[Array, Array, list[int]]) -> None:
    x, y, cuts = drawn
    one_hot = [np.moveaxis(np.eye(6, dtype=np.float32)[classes], 3, 1) for classes in (x, y)]
    found = measure(*one_hot, cuts=cuts)
    assert found.kind == "segmentation"
    assert {name: found.values[name] for name in by_hand(x, y)} == pytest.approx(by_hand(x, y))


def test_the_batches_do_not_change_the_result() -> None:
    x, y = random(5, 4, 9, 7), random(5, 4, 9, 7, seed=1)
    whole = measure(x, y)
    for cuts in ([1], [2, 3], [1, 2, 3, 4]):
        assert measure(x, y, cuts=cuts) == whole


def test_a_class_that_the_candidate_lost_counts_as_much_as_the_background() -> None:
    x = np.zeros((1, 10, 10), np.uint8)
    x[0, 0, 0] = 1
    found = measure(x, np.zeros_like(x))
    assert found.values == {
        "pixels": 99.0,
        "miou": pytest.approx((99.0 + 0.0) / 2),
        "miou_min": pytest.approx((99.0 + 0.0) / 2),
        "recall": 0.0,
    }
    gate = judge([found], (), 1)[0]
    assert (gate.metric, gate.verdict) == ("miou", "fail")


@pytest.mark.parametrize("kind", ["", "segmentation"])
@pytest.mark.parametrize("excess", [1.0000001, 1.0005, -1e-7])
def test_the_rounding_of_a_sigmoid_does_not_make_probabilities_logits(excess: float, kind: str) -> None:
    x = np.abs(random(2, 1, 8, 8)) % np.float32(0.4)
    x[1, 0, 0, 0] = excess
    y = x + np.float32(0.3)  # half of the pixels get above 0.5
    found = measure(x, y, name="sigmoid_0", kind=kind)
    assert found.kind == "segmentation"
    assert found.values["pixels"] == pytest.approx(100 * float(((x >= 0.5) == (y >= 0.5)).mean()))


def test_a_map_of_one_class_never_passes() -> None:
    x = np.full((3, 1, 8, 8), 0.1, np.float32)
    found = measure(x, x, name="mask")
    assert found.kind == "segmentation"
    assert judge([found], (), 3)[0].verdict == "inconclusive"


def test_a_class_that_only_the_candidate_assigns_counts() -> None:
    x = np.zeros((1, 10, 10), np.uint8)
    y = x.copy()
    y[0, 0, 0] = 3
    assert measure(x, y).values["miou"] == pytest.approx((99.0 + 0.0) / 2)


SMOOTH = softmax(random(3, 4, 8, 8), axis=1)
INSIDE = softmax(random(3, 2, 8, 8), axis=1)[:, 0]


@pytest.mark.parametrize(
    ("name", "array", "kind"),
    [
        ("out", SMOOTH, "segmentation"),  # a softmax at every pixel
        ("out", SMOOTH.astype(np.float16), "segmentation"),
        ("out", SMOOTH.astype(ml_dtypes.bfloat16), "values"),  # rounded too coarsely to sum to 1
        ("segmentation", random(3, 4, 8, 8), "segmentation"),
        ("logits", random(3, 4, 8, 8), "segmentation"),
        ("features", random(3, 4, 8, 8), "values"),
        ("cls_logits", random(3, 4, 8, 8), "values"),  # of a detector: anchors times classes
        ("pred_masks", random(3, 4, 8, 8), "values"),  # one mask per query, not one class per pixel
        ("attention", softmax(random(3, 4, 8, 8), axis=3), "values"),  # a softmax over another axis
        ("mask", INSIDE, "segmentation"),
        ("sigmoid_0.tmp_0", INSIDE[:, None], "segmentation"),
        ("mask", random(3, 8, 8), "values"),  # not within [0, 1]
        ("depth", INSIDE, "values"),
        ("sigmoid_0", INSIDE, "values"),  # time, perhaps
        ("seg_features", random(3, 4, 8, 8), "values"),
        ("attention_mask", INSIDE, "values"),
        ("image", INSIDE[:, None], "values"),
        ("seg_map", np.ones((3, 8, 8), np.int64), "segmentation"),
        ("mask", np.ones((3, 8, 8), np.bool_), "segmentation"),
        ("ids", np.ones((3, 8, 8), np.int64), "exact"),
        ("attention_mask", np.ones((3, 8, 8), np.int64), "exact"),
        ("seg", np.full((3, 8, 8), -1), "exact"),
        ("seg", np.full((3, 8, 8), 1 << 16), "exact"),
        ("seg", random(3, 8), "values"),
    ],
)
def test_ambiguous_outputs_are_not_read_as_classes(name: str, array: Array, kind: str) -> None:
    for cuts in ((), (1,), (1, 2)):
        assert measure(array, array, name=name, cuts=cuts).kind == kind


def test_one_pixel_that_is_not_a_softmax_makes_plain_values() -> None:
    spoiled = SMOOTH.copy()
    spoiled[2, :, 7, 7] = 1
    assert measure(spoiled, spoiled, name="out", cuts=[1]).kind == "values"


def test_the_threshold_of_probabilities_is_a_half() -> None:
    x = np.array([[[0.1, 0.6], [0.5, 0.4]]], np.float32)
    y = np.array([[[0.2, 0.9], [0.4, 0.4]]], np.float32)
    assert measure(x, y, name="mask").values["pixels"] == 75.0


def test_the_threshold_of_logits_is_zero_when_the_user_names_the_kind() -> None:
    x = np.array([[[0.1, 0.6], [0.2, 0.4]], [[0.1, -3.0], [5.0, 0.4]]], np.float32)
    y = np.array([[[0.2, 0.9], [-0.1, 0.4]], [[0.1, -3.0], [5.0, 0.4]]], np.float32)
    assert measure(x, y, name="y", kind="segmentation", cuts=[1]).values["pixels"] == 87.5


def test_scores_also_have_errors_and_worst_samples() -> None:
    y = SMOOTH.copy()
    y[1, :, 0, :4] = y[1, ::-1, 0, :4]
    found = measure(SMOOTH, y, name="out", cuts=[1])
    assert found.values["sqnr"] > 5
    assert [(each.sample, each.note) for each in found.worst] == [("1.png", "93.75 % of pixels agree")]
    assert found.spread is not None


def test_the_worst_samples_of_classes_have_the_fewest_agreeing_pixels() -> None:
    x = np.zeros((3, 4, 4), np.int32)
    y = x.copy()
    y[1, 0, 0] = 1
    y[2, :2] = 1
    assert [(each.index, each.note) for each in measure(x, y).worst] == [
        (2, "50.00 % of pixels agree"),
        (1, "93.75 % of pixels agree"),
    ]


@pytest.mark.parametrize("broken", ["FP32", "candidate"])
def test_a_sample_with_nan_is_named_and_its_pixels_do_not_count(broken: str) -> None:
    x, y = SMOOTH.copy(), SMOOTH.copy()
    (x if broken == "FP32" else y)[1, 0, 0, 0] = np.nan
    y[2] = y[2, ::-1]
    found = measure(x, y, name="segmentation", cuts=[2])
    assert found.first_bad.startswith("1.png")
    assert ("FP32 itself" in found.first_bad) == (broken == "FP32")
    assert found.values["nonfinite"] == 1.0
    left = [0, 2]
    assert found.values["pixels"] == pytest.approx(100 * np.mean(x[left].argmax(1) == y[left].argmax(1)))
    assert "% of pixels agree" in found.worst[0].note


def test_integers_that_are_not_classes_are_refused_when_the_user_names_the_kind() -> None:
    x = np.full((1, 4, 4), -1)
    with pytest.raises(
        ModelError, match="output y cannot be read as segmentation: it contains integers outside 0 to 6553"
    ):
        measure(x, x, name="y", kind="segmentation")


def test_maps_may_differ_in_size_between_samples() -> None:
    metrics = Metrics({})
    for i, side in enumerate((4, 6)):
        made = {"seg": np.eye(side, dtype=np.int32)[None]}
        metrics.add(Outputs(reference=made, candidate=made, indices=(i,)))
    (found,) = metrics.drifts(["a", "b"])
    assert found.values == {"pixels": 100.0, "miou": 100.0, "miou_min": 100.0, "recall": 100.0}
