"""Metrics: each equals plain numpy on all samples at once, however the samples are batched."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import rel_entr, softmax

from trtopt.compare import kinds
from trtopt.compare.gate import judge
from trtopt.compare.measures.outputs import Outputs
from trtopt.compare.metrics import Metrics
from trtopt.errors import ModelError, UsageError
from trtopt.types import OutputDrift

Floats = npt.NDArray[np.float32]
QUICK = settings(max_examples=60)
FINITE = st.floats(-1e4, 1e4, width=32)


def measure(
    reference: npt.NDArray[np.generic],
    candidate: npt.NDArray[np.generic],
    labels: Sequence[int] | None = None,
    *,
    name: str = "y",
    cuts: Sequence[int] = (),
    kind: str = "",
) -> OutputDrift:
    """Accumulate both arrays (first axis: samples), cut into batches before the rows in `cuts`."""
    metrics = Metrics({name: kind} if kind else {}, apart=bool(len(cuts) % 2))
    edges = [0, *sorted(cuts), len(reference)]
    for start, end in itertools.pairwise(edges):
        if start < end:
            metrics.add(batch(reference[start:end], candidate[start:end], range(start, end), labels, name=name))
    (found,) = metrics.drifts([f"eval.npz[{i}]" for i in range(len(reference))])
    return found


def batch(
    reference: npt.NDArray[np.generic],
    candidate: npt.NDArray[np.generic],
    indices: Sequence[int],
    labels: Sequence[int] | None = None,
    *,
    name: str = "y",
) -> Outputs:
    part = tuple(labels[i] for i in indices) if labels is not None else None
    return Outputs(reference={name: reference}, candidate={name: candidate}, indices=tuple(indices), labels=part)


@st.composite
def outputs(draw: st.DrawFn) -> tuple[Floats, Floats, list[int]]:
    """Draw reference, candidate, and the rows at which they are cut into batches."""
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 12)))
    reference = draw(hnp.arrays(np.float32, shape, elements=FINITE))
    candidate = draw(hnp.arrays(np.float32, shape, elements=FINITE))
    return reference, candidate, draw(st.lists(st.integers(1, shape[0]), max_size=4, unique=True))


@QUICK
@given(outputs())
def test_errors_equal_numpy_on_all_samples_at_once(drawn: tuple[Floats, Floats, list[int]]) -> None:
    reference, candidate, cuts = drawn
    x, y = reference.astype(np.float64), candidate.astype(np.float64)
    found = measure(reference, candidate, cuts=cuts).values
    assert found["max_abs"] == np.abs(x - y).max()
    assert found["mean_abs"] == pytest.approx(np.abs(x - y).mean())
    assert found["rmse"] == pytest.approx(np.sqrt(np.square(x - y).mean()))
    signal, error = np.square(x).sum(), np.square(x - y).sum()
    if signal and error:
        assert found["sqnr"] == pytest.approx(10 * np.log10(signal / error), abs=1e-9)
    else:
        assert found["sqnr"] == (math.inf if not error else -math.inf)


@QUICK
@given(outputs())
def test_cosine_takes_all_samples_as_one_vector(drawn: tuple[Floats, Floats, list[int]]) -> None:
    reference, candidate, cuts = drawn
    x, y = reference.astype(np.float64).ravel(), candidate.astype(np.float64).ravel()
    lengths = np.linalg.norm(x) * np.linalg.norm(y)
    expected = x @ y / lengths if lengths else float((x == y).all())
    assert measure(reference, candidate, cuts=cuts).values["cosine"] == pytest.approx(expected, abs=1e-9)


def test_an_almost_empty_sample_does_not_decide_the_cosine() -> None:
    reference = np.array([[1.0, 2.0, 3.0], [1e-9, 0.0, 0.0]])
    candidate = np.array([[1.0, 2.0, 3.0], [0.0, 1e-9, 0.0]])
    assert measure(reference, candidate).values["cosine"] == pytest.approx(1.0)


@st.composite
def scored(draw: st.DrawFn) -> tuple[Floats, Floats, list[int], list[int]]:
    """Draw class scores with many ties, labels, and the rows at which they are cut into batches."""
    count, classes = draw(st.integers(1, 12)), draw(st.integers(2, 14))
    elements = st.integers(-3, 3).map(float)
    reference = draw(hnp.arrays(np.float32, (count, classes), elements=elements))
    candidate = draw(hnp.arrays(np.float32, (count, classes), elements=elements))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    return reference, candidate, labels, draw(st.lists(st.integers(1, count), max_size=4, unique=True))


@QUICK
@given(scored())
def test_agreement_equals_a_stable_sort(drawn: tuple[Floats, Floats, list[int], list[int]]) -> None:
    reference, candidate, _, cuts = drawn
    found = measure(reference, candidate, name="logits", cuts=cuts).values
    best = reference.argmax(axis=1)
    order = np.argsort(-candidate, axis=1, kind="stable")
    assert found["top1"] == pytest.approx(100 * np.mean(order[:, 0] == best))
    if reference.shape[1] >= 10:
        assert found["top5"] == pytest.approx(100 * np.mean((order[:, :5] == best[:, None]).any(axis=1)))
    else:
        assert "top5" not in found


@QUICK
@given(scored())
def test_the_batches_do_not_change_the_result(drawn: tuple[Floats, Floats, list[int], list[int]]) -> None:
    reference, candidate, labels, cuts = drawn
    assert measure(reference, candidate, labels) == measure(reference, candidate, labels, cuts=cuts)


@QUICK
@given(st.integers(1, 3), st.integers(1, 100_000), st.integers(0, 2**32 - 1))
def test_wide_outputs_do_not_depend_on_the_batches_to_the_last_bit(count: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    reference, candidate = random.normal(size=(2, count, width)).astype(np.float32)
    assert measure(reference, candidate) == measure(reference, candidate, cuts=range(1, count))


def test_accuracy_counts_the_model_that_is_right() -> None:
    labels = [0, 1, 2, 0, 1, 2, 0, 1]
    reference = np.eye(3, dtype=np.float32)[labels]
    candidate = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2, 1, 0]]
    found = measure(reference, candidate, labels)
    assert found.kind == "scores"
    assert (found.values["accuracy_fp32"], found.values["accuracy"], found.values["top1"]) == (100.0, 75.0, 75.0)


def test_a_dead_candidate_is_not_in_the_top_5_by_its_ties() -> None:
    reference = np.eye(10, dtype=np.float32)[[9, 8, 7, 6]]
    assert measure(reference, np.zeros_like(reference)).values["top5"] == 0.0


@pytest.mark.parametrize(
    ("name", "shape", "labels", "kind"),
    [
        ("logits", (6, 10), None, "scores"),
        ("logits", (6, 10, 1, 1), None, "scores"),
        ("embedding", (6, 10), None, "values"),
        ("logits", (6, 4, 10), None, "values"),
        ("logits", (6, 1), None, "scores"),
        ("logits", (6,), None, "scores"),
        ("age", (6, 1), None, "values"),
        ("score", (6, 1), None, "values"),
    ],
)
def test_kind_of_float_outputs(name: str, shape: tuple[int, ...], labels: list[int] | None, kind: str) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert measure(array, array, labels, name=name).kind == kind


def test_rows_that_sum_to_one_hold_scores_only_if_all_of_them_do() -> None:
    rows = np.full((4, 5), 0.2, np.float32)
    assert measure(rows, rows).kind == "scores"
    rows[3] = 1
    assert measure(rows, rows, cuts=[2]).kind == "values"


def test_labels_that_fp32_gets_right_make_an_output_scores() -> None:
    labels = [0, 1, 2, 3, 4, 5] * 3
    rows = 3 * np.eye(6, dtype=np.float32)[labels]
    assert measure(rows, rows, labels).kind == "scores"


def test_labels_do_not_make_an_embedding_scores() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(200, 64)).astype(np.float32)
    found = measure(rows, -rows, random.integers(0, 10, 200).tolist(), name="embedding")
    assert found.kind == "values"
    assert "accuracy" not in found.values
    assert found.values["cosine"] == pytest.approx(-1)


def test_labels_in_another_order_give_no_accuracy() -> None:
    truth = np.random.default_rng(0).integers(0, 10, 200)
    logits = np.eye(10, dtype=np.float32)[truth]
    shifted = measure(logits, logits, ((truth + 1) % 10).tolist(), name="logits")
    outside = measure(logits, logits, (truth + 10).tolist(), name="logits")
    for found in (shifted, outside):
        assert found.kind == "scores"
        assert "accuracy" not in found.values
        assert found.values["top1"] == 100.0


@pytest.mark.parametrize("kind", ["scores", "values", "exact"])
@pytest.mark.parametrize("infinity", [np.inf, -np.inf])
def test_infinities_that_fp32_has_too_are_equal(infinity: float, kind: str) -> None:
    reference = np.random.default_rng(0).normal(size=(5, 10)).astype(np.float32)
    candidate = reference + np.float32(0.5)
    reference[3, 2] = candidate[3, 2] = infinity
    values = measure(reference, candidate, name="logits", kind=kind).values
    assert values["nonfinite"] == 0.0
    if kind != "exact":
        assert values["max_abs"] == pytest.approx(0.5)
        assert all(math.isfinite(value) for value in values.values())
        assert measure(reference, reference, name="logits", kind=kind).values["cosine"] == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["reference", "candidate", "both"])
@pytest.mark.parametrize("kind", ["scores", "values", "exact"])
def test_nonfinite_samples_are_counted_but_not_averaged(bad: float, where: str, kind: str) -> None:
    reference = np.random.default_rng(0).normal(size=(5, 10)).astype(np.float32)
    candidate = reference + np.float32(0.5)
    if where != "candidate":
        reference[3, 2] = bad
    if where != "reference":
        candidate[3, 7] = bad
    found = measure(reference, candidate, name="logits", kind=kind)
    assert found.first_bad == "eval.npz[3]" + ("; FP32 itself has it in 1" if where != "candidate" else "")
    values = found.values
    assert values["nonfinite"] == 1.0
    if kind == "exact":
        return
    assert values["mean_abs"] == pytest.approx(0.5)
    assert all(math.isfinite(value) for value in values.values())


def test_all_samples_nan_gives_only_their_count() -> None:
    array = np.full((2, 3), np.nan, np.float32)
    assert measure(array, array).values == {"nonfinite": 2.0}


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_integers_and_booleans_are_compared_exactly(dtype: type) -> None:
    reference = np.array([[1, 0, 1, 1], [0, 0, 1, 1]]).astype(dtype)
    candidate = reference.copy()
    candidate[0, 1] = 1
    found = measure(reference, candidate, cuts=[1])
    assert (found.kind, found.values) == ("exact", {"equal": 87.5, "same": 100.0, "recall": pytest.approx(200 / 3)})


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floats_are_measured_like_float32(dtype: type) -> None:
    reference = np.array([[1, 2, 4]]).astype(dtype)
    found = measure(reference, np.array([[1, 2, 3]]).astype(dtype))
    assert found.kind == "values"
    assert (found.values["max_abs"], found.values["mean_abs"]) == (1.0, pytest.approx(1 / 3))


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_outputs_without_elements_in_both_models_are_equal(dtype: type) -> None:
    empty = np.zeros((1, 0, 4), dtype)
    found = measure(empty, empty)
    assert all(gate.passed for gate in judge([found], (), 1))
    assert judge([found], (), 1)


def test_numbers_too_large_to_square_become_nan_or_inf_and_never_a_good_value() -> None:
    huge = np.full((1, 3), 1e200)
    values = measure(huge, huge * 0.5).values
    assert not values["sqnr"] >= 0
    assert not values["cosine"] >= 0


def test_memory_does_not_grow_with_the_size_of_outputs() -> None:
    metrics = Metrics({}, apart=True)
    rows = np.ones((4, 3, 500, 500), np.float32)
    tracemalloc.start()
    for start in range(0, 80, 4):
        metrics.add(batch(rows, rows, range(start, start + 4)))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 2e5


@pytest.mark.parametrize(
    ("candidate", "count", "message"),
    [
        (np.zeros((2, 4), np.float32), 2, r"output y has another shape in the candidate: \[2, 3\] in FP32, \[2, 4\]"),
        (np.zeros((2, 3), np.int64), 2, "output y has another type in the candidate: float32 in FP32, int64"),
        (
            np.zeros((2, 3), np.float32),
            4,
            r"output y does not have one row per sample: its shape is \[2, 3\] for 4 samples",
        ),
    ],
)
def test_outputs_that_cannot_be_compared_are_refused(
    candidate: npt.NDArray[np.generic], count: int, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        Metrics({}).add(batch(np.zeros((2, 3), np.float32), candidate, range(count)))


def test_an_output_that_cannot_be_compared_is_refused_at_its_first_batch() -> None:
    rows = np.zeros((2, 3), np.float32)
    with pytest.raises(ModelError, match="another shape"):
        Metrics({}, apart=True).add(batch(rows, rows[:, :2], (0, 1)))


def test_an_output_that_changes_its_shape_later_is_refused_too() -> None:
    metrics = Metrics({}, apart=True)
    rows = np.zeros((2, 3), np.float32)
    metrics.add(batch(rows, rows, (0, 1)))
    metrics.add(batch(rows, rows[:, :2], (2, 3)))
    with pytest.raises(ModelError, match="another shape"):
        metrics.drifts(["a"] * 4)


def test_numbers_of_samples_come_with_the_agreement() -> None:
    labels = [0, 1, 2, 0, 1, 2, 0, 1]
    reference = np.eye(12, dtype=np.float32)[labels]
    candidate = np.eye(12, dtype=np.float32)[[0, 1, 2, 0, 1, 2, 1, 0]]
    reference[7] = reference[6]  # FP32 is wrong, the candidate right by chance
    found = measure(reference, candidate, [*labels[:7], 0], name="logits")
    assert found.counts == {
        "samples": 8,
        "agree": 7,
        "top5": 8,
        "both": 7,
        "only_fp32": 1,
        "only_candidate": 0,
        "chosen": 3,
        "class": 0,
        "decisions": 4,
        "kept": 3,
        "having": 4,
        "groups": 4,
    }


@QUICK
@given(outputs())
def test_the_divergence_of_logits_is_that_of_their_softmax(drawn: tuple[Floats, Floats, list[int]]) -> None:
    reference, candidate, cuts = (drawn[0] / 1000, drawn[1] / 1000, drawn[2])
    if reference.shape[1] < 2:
        return
    p, q = (softmax(array.astype(np.float64), axis=1) for array in (reference, candidate))
    found = measure(reference, candidate, cuts=cuts, name="logits")
    assert found.values["kl"] == pytest.approx(rel_entr(p, q).sum(axis=1).mean(), abs=1e-9)


def test_the_divergence_of_a_softmax_is_that_of_its_values() -> None:
    p = np.array([[0.5, 0.25, 0.25], [0.9, 0.1, 0.0]], np.float32)
    q = np.array([[0.25, 0.5, 0.25], [0.8, 0.1, 0.1]], np.float32)
    expected = (0.5 * np.log(2) - 0.25 * np.log(2) + 0.9 * np.log(9 / 8)) / 2
    assert measure(p, q).values["kl"] == pytest.approx(expected, rel=1e-5)
    assert measure(p, p).values["kl"] == 0.0


def test_a_probability_that_underflows_has_a_finite_divergence() -> None:
    p, q = np.array([[1 - 1e-5, 1e-5]], np.float32), np.array([[1.0, 0.0]], np.float32)
    assert 0 < measure(p, q).values["kl"] < 1e-2


def test_the_relative_error_is_rms_over_rms() -> None:
    reference = np.random.default_rng(0).normal(size=(7, 20))
    candidate = reference + np.random.default_rng(1).normal(size=(7, 20)) / 10
    expected = np.sqrt(np.square(reference - candidate).mean() / np.square(reference).mean())
    found = measure(reference, candidate, cuts=[3]).values
    assert found["relative"] == pytest.approx(expected)
    assert found["relative"] == pytest.approx(10 ** (-found["sqnr"] / 20))


@pytest.mark.parametrize(("candidate", "relative"), [(0.0, 0.0), (1.0, math.inf)])
def test_the_relative_error_of_nothing(candidate: float, relative: float) -> None:
    zeros = np.zeros((2, 3))
    assert measure(zeros, np.full_like(zeros, candidate)).values["relative"] == relative


def test_the_worst_cosine_is_that_of_one_sample() -> None:
    reference = np.array([[1.0, 0.0], [1.0, 0.0], [1e-3, 0.0]])
    candidate = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1e-3]])
    found = measure(reference, candidate, cuts=[1]).values
    assert found["cosine_min"] == 0.0
    assert found["cosine"] > 0.999


def test_differing_samples_are_named_with_the_number_of_differences() -> None:
    reference = np.arange(12).reshape(4, 3)
    candidate = reference.copy()
    candidate[1, 0] = candidate[2, 0] = candidate[3, 0] = candidate[3, 1] = 99
    found = measure(reference, candidate, cuts=[2])
    assert [(each.sample, each.index, each.note) for each in found.worst] == [
        ("eval.npz[3]", 3, "2 of 3 differ"),
        ("eval.npz[1]", 1, "1 of 3 differ"),
        ("eval.npz[2]", 2, "1 of 3 differ"),
    ]


def test_text_is_compared_exactly() -> None:
    texts = np.array([["a", "b"], ["c", "d"]], dtype=object)
    other = np.array([["a", "b"], ["c", "x"]], dtype=object)
    assert measure(texts, other).values == {"equal": 75.0, "same": 100.0, "recall": 0.0}


@pytest.mark.parametrize(
    ("asked", "array"),
    [
        ("values", np.eye(4, dtype=np.float32)),
        ("values", np.eye(4, dtype=np.int32)),
        ("exact", np.eye(4, dtype=np.float32)),
        ("scores", np.ones((4, 6), np.float32)),
        ("scores", np.ones((4, 6), np.uint8)),
        ("segmentation", np.ones((4, 6, 6), np.float32)),
        ("detection", np.tile(np.array([0, 0, 1, 1], np.float32), (4, 5, 1))),
    ],
)
def test_the_kind_that_is_asked_for_is_the_one_that_is_measured(asked: str, array: npt.NDArray[np.generic]) -> None:
    assert measure(array, array, kind=asked, cuts=[2]).kind == asked


@pytest.mark.parametrize(
    ("asked", "shape", "message"),
    [
        (
            "scores",
            (4, 6, 6),
            r"output y cannot be read as scores: it is float32 \[4, 6, 6\], and scores takes one",
        ),
        ("segmentation", (4, 6), r"cannot be read as segmentation: it is float32 \[4, 6\]"),
        ("detection", (4, 6), r"cannot be read as detection: it is float32 \[4, 6\]"),
    ],
)
def test_a_kind_that_does_not_fit_the_output_is_refused(asked: str, shape: tuple[int, ...], message: str) -> None:
    array = np.zeros(shape, np.float32)
    with pytest.raises(UsageError, match=message):
        measure(array, array, kind=asked)


def test_vectors_of_changing_length_are_not_scores() -> None:
    metrics = Metrics({"y": "scores"})
    for i, classes in enumerate((3, 4)):
        array = np.ones((1, classes), np.float32)
        metrics.add(batch(array, array, (i,)))
    with pytest.raises(ModelError, match="output y cannot be read as scores: its shape differs between samples"):
        metrics.drifts(["a", "b"])


def test_a_kind_of_an_unknown_output_is_refused_with_a_suggestion() -> None:
    array = np.zeros((1, 3), np.float32)
    with pytest.raises(UsageError, match=r"--kind names an unknown output 'logit'. Did you mean logits"):
        Metrics({"logit": "scores"}).add(batch(array, array, (0,), name="logits"))


def test_an_unknown_kind_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"unknown kind of output 'segmentatoin'. Did you mean segmentation"):
        kinds.kind("segmentatoin")
    with pytest.raises(UsageError, match="Choose one of detection, exact, scores, segmentation, values"):
        kinds.kind("outputs")
