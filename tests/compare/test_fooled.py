"""Attempts to fool the default gates: a ruined candidate never passes, and FP32 against itself never fails.

Each candidate is judged through `compare` as a user's is, on 320 samples and on 40: with many samples a ruined one must
fail, with few it must not pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import expit, softmax

from trtopt.compare.gate import judged
from trtopt.compare.gates import parse_gates
from trtopt.compare.pair import Pair
from trtopt.compare.run import Measure, compare
from trtopt.data.dataset import Dataset
from trtopt.events import silent
from trtopt.types import Comparison

Array = npt.NDArray[np.generic]
MANY, FEW = 320, 40
RANDOM = np.random.default_rng(7)
X = RANDOM.normal(size=(MANY, 24)).astype(np.float32)
WEIGHTS = RANDOM.normal(size=(24, 12)).astype(np.float32)
LOGITS = X @ WEIGHTS
LABELS = tuple(int(label) for label in LOGITS.argmax(axis=1))

FP32: dict[str, Callable[[Array], Array]] = {
    "logits": lambda x: x @ WEIGHTS,
    "probs": lambda x: softmax(x @ WEIGHTS, axis=1),
    "saturated_probs": lambda x: softmax(30 * (x @ WEIGHTS), axis=1),
    "yes_prob": lambda x: expit(x @ WEIGHTS)[:, :1],
    "embedding": lambda x: np.tanh(x @ WEIGHTS),
    "temperature": lambda x: 300 + 2 * (x @ WEIGHTS)[:, :1],
    "denoised": lambda x: x + np.float32(0.03) * np.tanh(x @ WEIGHTS) @ WEIGHTS.T,
    "head": lambda x: np.stack([300 + 50 * (x @ WEIGHTS), expit(x @ WEIGHTS - 2)], axis=1),
    "mask": lambda x: expit((x @ WEIGHTS).reshape(len(x), 3, 4)),
    "ids": lambda x: (x @ WEIGHTS).argsort(axis=1),
}


def one_in_a_thousand(x: Array, y: Array) -> Array:
    """Invert the outputs of a single sample, which is among the first 40."""
    whole, one = FP32_ALL[y.shape[1:]], (x == X[11]).all(axis=1).reshape(-1, *[1] * (y.ndim - 1))
    return np.where(one, whole.max() + whole.min() - y, y)


RUINED: dict[str, Callable[[Array, Array], Array]] = {
    "constant": lambda x, y: np.broadcast_to(FP32_ALL[y.shape[1:]].mean(axis=0), y.shape).astype(y.dtype),
    "zeros": lambda x, y: np.zeros_like(y),
    "negated": lambda x, y: -y,
    "reversed": lambda x, y: np.ascontiguousarray(y[..., ::-1]),
    "of another sample": lambda x, y: np.stack([FP32_ALL[y.shape[1:]][3]] * len(y)).astype(y.dtype),
    "one sample inverted": one_in_a_thousand,
    "one element NaN": lambda x, y: np.where((x == X[11]).all(axis=1).reshape(-1, *[1] * (y.ndim - 1)), np.nan, y),
    "half as large": lambda x, y: y * np.asarray(0.5, y.dtype),
}
FP32_ALL: dict[tuple[int, ...], Array] = {}
"""FP32's outputs on all samples, by their shape."""

# These change no answer, or change the temperature of one sample by less than a tenth.
HARMLESS = {
    ("one sample inverted", "temperature"),
    ("half as large", "ids"),
    ("negated", "ids"),
    ("one element NaN", "ids"),
    ("reversed", "yes_prob"),
    ("reversed", "temperature"),
    ("one sample inverted", "ids"),
}


class Model:
    """A model of numpy functions, one per output."""

    where = "numpy"

    def __init__(self, outputs: Mapping[str, Callable[[Array], Array]]) -> None:
        self.outputs = outputs

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        return {name: function(feed["x"]) for name, function in self.outputs.items()}


def verdict(
    reference: Mapping[str, Callable[[Array], Array]],
    candidate: Mapping[str, Callable[[Array], Array]],
    count: int,
    labels: tuple[int, ...] | None = None,
    gates: str = "",
    samples: Callable[[int], Array] = lambda i: X[i : i + 1],
) -> Comparison:
    dataset = Dataset(
        source="eval.npz",
        digest="d",
        ids=tuple(f"eval.npz[{i}]" for i in range(count)),
        load=lambda i: {"x": samples(i)},
        batched=len({samples(i).shape for i in range(min(count, 9))}) <= 1,
        labels=labels and labels[:count],
    )
    pair = Pair(baseline=Model(reference), candidate=Model(candidate), names=("a", "b"))
    return judged(compare(pair, dataset, Measure(), emit=silent, batch=64), parse_gates(gates))


@pytest.mark.parametrize("count", [MANY, FEW])
@pytest.mark.parametrize("output", FP32)
def test_fp32_against_itself_never_fails(output: str, count: int) -> None:
    found = verdict({output: FP32[output]}, {output: FP32[output]}, count).verdict
    assert found == "pass" if count == MANY else found in ("pass", "inconclusive")


@pytest.mark.parametrize("count", [MANY, FEW])
@pytest.mark.parametrize("damage", RUINED)
@pytest.mark.parametrize("output", FP32)
def test_a_ruined_output_never_passes(output: str, damage: str, count: int) -> None:
    if (damage, output) in HARMLESS:
        return
    whole = FP32[output](X)
    FP32_ALL[whole.shape[1:]] = whole
    spoil = RUINED[damage]
    found = verdict({output: FP32[output]}, {output: lambda x: spoil(x, FP32[output](x))}, count)
    assert found.verdict == "fail" if count == MANY else found.verdict != "pass", found.gates


@pytest.mark.parametrize("count", [MANY, FEW])
def test_a_candidate_that_copies_its_input_never_passes(count: int) -> None:
    found = verdict({"denoised": FP32["denoised"]}, {"denoised": lambda x: x}, count)
    assert found.verdict == "fail"
    assert found.outputs[0].values["cosine"] > 0.99


@pytest.mark.parametrize("count", [MANY, FEW])
def test_a_ruined_output_beside_a_good_one_never_passes(count: int) -> None:
    reference = {name: FP32[name] for name in ("logits", "embedding")}
    for ruined in reference:
        candidate = {**reference, ruined: lambda x: np.zeros((len(x), 12), np.float32)}
        for gates in ("", "logits:top1=20%"):
            assert verdict(reference, candidate, count, gates=gates).verdict == "fail"


def test_a_gate_of_the_users_does_not_excuse_a_ruined_output() -> None:
    scaled = {"logits": lambda x: 10 * (x @ WEIGHTS)}
    original = {"logits": FP32["logits"]}
    assert verdict(original, scaled, MANY, gates="top1=0.5%,cosine=0.99").verdict == "fail"
    assert verdict(original, scaled, MANY, gates="top1=1%,cosine=0.99,sqnr_min=-99dB").verdict == "pass"


def test_swapped_classes_fail() -> None:
    order = [*range(12)]
    order[3], order[5] = 5, 3
    found = verdict({"logits": FP32["logits"]}, {"logits": lambda x: (x @ WEIGHTS)[:, order]}, MANY, LABELS)
    assert found.verdict == "fail"


@pytest.mark.parametrize("name", ["logits", "linear"])
def test_labels_shifted_by_one_fail(name: str) -> None:
    shifted = tuple((label + 1) % 12 for label in LABELS)
    found = verdict({name: FP32["logits"]}, {name: FP32["logits"]}, MANY, shifted)
    assert found.outputs[0].kind == "scores"
    assert found.verdict == "fail"
    assert "labels do not fit" in found.gates[0].reason


def test_labels_do_not_make_scores_of_another_output() -> None:
    outputs = {"linear": FP32["logits"], "features": lambda x: np.sin(7 * (x @ WEIGHTS))}
    found = verdict(outputs, outputs, MANY, LABELS)
    assert [output.kind for output in found.outputs] == ["scores", "values"]
    assert found.verdict == "pass"


def test_five_points_of_a_binary_classifier_fail() -> None:
    labels = tuple(int(score > 0) for score in (X @ WEIGHTS)[:, 0])
    near = lambda x: expit(np.sort((x @ WEIGHTS)[:, :1] - np.float32(0.9), axis=1))  # noqa: E731
    found = verdict({"yes_prob": FP32["yes_prob"]}, {"yes_prob": near}, MANY, labels)
    assert found.outputs[0].kind == "scores"
    assert found.verdict == "fail"


def test_ties_do_not_pass() -> None:
    found = verdict({"logits": FP32["logits"]}, {"logits": lambda x: np.ones((len(x), 12), np.float32)}, MANY, LABELS)
    assert found.verdict == "fail"


def test_no_samples_fail() -> None:
    assert verdict({"logits": FP32["logits"]}, {"logits": FP32["logits"]}, 0).verdict == "fail"


def test_a_reference_that_always_chooses_one_class_never_passes() -> None:
    one = {"logits": lambda x: x @ WEIGHTS * np.float32(0.1) + np.eye(12, dtype=np.float32)[4] * 50}
    assert verdict(one, one, MANY).verdict == "inconclusive"
    assert verdict(one, {"logits": FP32["logits"]}, MANY).verdict == "fail"


@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
def test_rows_whose_number_depends_on_the_data_are_a_difference(axis: int) -> None:
    def above(least: float) -> dict[str, Callable[[Array], Array]]:  # with axis 1 as NonZero: a row per axis of x
        return {"selected": lambda x: np.moveaxis(np.argwhere(x > least).astype(np.int64), 0, axis)}

    boxes, fewer = above(1.0), above(1.1)
    assert verdict(boxes, boxes, MANY).verdict == "pass"
    found = verdict(boxes, fewer, MANY)
    assert found.verdict == "fail"
    assert 50 < found.outputs[0].values["equal"] < 99


@pytest.mark.parametrize("axis", [0, 1])
def test_numbers_whose_count_depends_on_the_data_are_a_difference(axis: int) -> None:
    def above(least: float) -> dict[str, Callable[[Array], Array]]:
        return {"chosen": lambda x: np.expand_dims(x[x > least], 1 - axis)}

    assert verdict(above(1.0), above(1.0), MANY).verdict == "pass"
    assert verdict(above(1.0), above(1.1), MANY).verdict == "fail"


def test_a_copied_input_of_another_length_in_each_sample_never_passes() -> None:
    signals = [RANDOM.normal(size=(1, 40 + i % 7)).astype(np.float32) for i in range(40)]
    denoise = lambda x: x + np.float32(0.05) * np.sin(9 * x)  # noqa: E731
    found = verdict({"y": denoise}, {"y": lambda x: x}, 40, samples=signals.__getitem__)
    assert found.verdict == "fail"
    assert verdict({"y": denoise}, {"y": denoise}, 40, samples=signals.__getitem__).verdict == "pass"


@pytest.mark.parametrize(("mean", "spread"), [(101325.0, 80.0), (2015.0, 1.5), (300.0, 10.0)])
@pytest.mark.parametrize("count", [MANY, 4])
def test_a_constant_near_a_large_mean_never_passes(mean: float, spread: float, count: int) -> None:
    level = {"pressure": lambda x: mean + np.float32(spread) * x[:, :1]}
    constant = {"pressure": lambda x: np.full((len(x), 1), mean, np.float32)}
    assert verdict(level, constant, count).verdict == "fail"
    assert verdict(level, level, count).verdict == "pass"


def test_each_of_a_few_quantities_must_be_explained() -> None:
    two = {"state": lambda x: np.stack([300 + x[:, 0], 50 + 20 * x[:, 1]], axis=1)}
    lost = {"state": lambda x: np.stack([0 * x[:, 0] + 300, 50 + 20 * x[:, 1]], axis=1)}
    assert verdict(two, lost, MANY).verdict == "fail"


def test_probabilities_that_hardly_vary_show_nothing() -> None:
    near = {"points": lambda x: np.float32(0.5) + np.float32(0.04) * np.tanh(x)}
    assert verdict(near, {"points": lambda x: np.full_like(x, 0.5)}, MANY).verdict == "inconclusive"


def test_a_label_that_is_rare_and_lost_never_passes() -> None:
    rare = {"label": lambda x: (x[:, 0] > 2.5).astype(np.int64)}
    never = {"label": lambda x: np.zeros(len(x), np.int64)}
    assert 0 < int((X[:, 0] > 2.5).sum()) < 10
    assert verdict(rare, never, MANY).verdict == "inconclusive"
    constant = {"label": lambda x: np.zeros(len(x), np.int64)}
    assert verdict(constant, constant, MANY).verdict == "inconclusive"


def test_samples_of_integers_that_are_ruined_as_a_whole_fail() -> None:
    ids = {"ids": lambda x: (10 * x).astype(np.int64)}
    spoilt = {"ids": lambda x: (10 * x).astype(np.int64) * (x[:, :1] < 1.8)}
    found = verdict(ids, spoilt, MANY)
    assert found.verdict == "fail"


def test_classes_of_a_sequence_that_change_fail() -> None:
    logits = {"logits": lambda x: np.stack([x @ WEIGHTS] * 3, axis=1) + 20}
    noisy = {"logits": lambda x: np.stack([x @ WEIGHTS + 4 * np.sin(50 * x @ WEIGHTS)] * 3, axis=1) + 20}
    found = verdict(logits, noisy, MANY)
    assert "positions" in {gate.metric for gate in found.gates if gate.verdict == "fail"}


def test_an_object_that_is_lost_in_one_sample_fails() -> None:
    def maps(x: Array) -> Array:
        classes = np.zeros((len(x), 40, 40), np.int64)
        classes[:, 5:12, 5:12] = 1
        return classes

    def lost(x: Array) -> Array:
        classes = maps(x)
        classes[(x == X[11]).all(axis=1)] = 0
        return classes

    assert verdict({"seg": maps}, {"seg": maps}, MANY).verdict == "pass"
    assert verdict({"seg": maps}, {"seg": lost}, MANY).verdict == "fail"


def boxes(shift: float = 0.0, drop: int = -1) -> dict[str, Callable[[Array], Array]]:
    """Four boxes per sample, moved by a share of their size, or without scores in one sample."""

    def corners(x: Array) -> Array:
        start = 100 * (1 + np.arange(4))[None, :, None] + 10 * np.abs(x[:, :1, None]) + shift * 50
        return np.concatenate([start, start, start + 50, start + 50], axis=2).astype(np.float32)

    def scores(x: Array) -> Array:
        made = np.full((len(x), 4), 0.9, np.float32)
        made[(x == X[drop]).all(axis=1)] = 0.0 if drop >= 0 else 0.9
        return made

    return {"boxes": corners, "scores": scores}


def test_boxes_that_all_moved_or_that_one_sample_lost_fail() -> None:
    assert verdict(boxes(), boxes(), MANY).verdict == "pass"
    assert verdict(boxes(), boxes(shift=0.15), MANY).verdict == "fail"
    assert verdict(boxes(), boxes(drop=11), MANY).verdict == "fail"


def test_labels_of_a_rare_answer_do_not_fail_fp32_against_itself() -> None:
    random = np.random.default_rng(3)
    labels = tuple(int(label) for label in random.random(MANY) < 0.07)
    told = {"prob": lambda x: np.where((x[:, :1] > 2.0), 0.9, 0.1).astype(np.float32)}
    assert verdict(told, told, MANY, labels).verdict != "fail"
    assert verdict(told, told, 12, labels).verdict != "fail"


def test_labels_of_one_answer_only_do_not_fail_fp32_against_itself() -> None:
    nearly = {"prob": lambda x: np.where(x[:, :1] > -1.6, 0.9, 0.1).astype(np.float32)}
    assert verdict(nearly, nearly, MANY, (1,) * MANY).verdict != "fail"
