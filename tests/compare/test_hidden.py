"""Ruins that hide behind what is frequent or large: each fails, and the same output with the noise of INT8 passes.

A candidate is judged through `compare` as a user's is, on 300 samples unless the test says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import expit

from trtopt.compare.gate import judged
from trtopt.compare.pair import Pair
from trtopt.compare.run import Measure, compare
from trtopt.data.dataset import Dataset
from trtopt.events import silent
from trtopt.types import Comparison

Array = npt.NDArray[np.generic]
Made = Mapping[str, Array]
MANY = 300
RANDOM = np.random.default_rng(5)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A model that returns recorded outputs; its input is the index of the sample."""

    outputs: Made
    where: str = "numpy"

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        index = feed["i"].astype(np.intp).reshape(-1)
        return {name: array[index] for name, array in self.outputs.items()}


def verdict(reference: Made, candidate: Made, labels: Array | None = None, batch: int = 64) -> Comparison:
    count = len(next(iter(reference.values())))
    dataset = Dataset(
        source="eval.npz",
        digest="d",
        ids=tuple(f"eval.npz[{i}]" for i in range(count)),
        load=lambda i: {"i": np.full((1, 1), i)},
        batched=True,
        labels=None if labels is None else tuple(labels.tolist()),
    )
    pair = Pair(baseline=Recorded(reference), candidate=Recorded(candidate), names=("a", "b"))
    return judged(compare(pair, dataset, Measure(), emit=silent, batch=batch), ())


def failed(found: Comparison) -> set[str]:
    """Return the metrics of the gates that failed."""
    return {gate.metric for gate in found.gates if gate.verdict == "fail"}


def rounded(made: Made, decibel: float = 26.0) -> dict[str, Array]:
    """Return the floating-point outputs with the noise of INT8: independent of the signal, of this SQNR per output."""
    noisy = {}
    for name, array in made.items():
        level = 10 ** (-decibel / 20) * np.sqrt(np.mean(np.square(array, dtype=np.float64)))
        noise = level * RANDOM.normal(size=array.shape) if array.dtype.kind == "f" else np.zeros(array.shape)
        noisy[name] = (array + noise).astype(array.dtype)
    return noisy


# Scores of several labels.


def several_labels(count: int = MANY) -> Array:
    """Return logits of 80 labels, about two of which apply to a sample."""
    logits = RANDOM.normal(-6, 1, (count, 80))
    applies = RANDOM.uniform(size=logits.shape) < 0.03
    logits[applies] = RANDOM.uniform(1, 4, applies.sum())
    logits[np.arange(count), logits.argmax(axis=1)] += 2
    return logits.astype(np.float32)


def test_labels_that_are_lost_beside_the_first_fail() -> None:
    logits = several_labels()
    lost = np.where((logits > 0) & (logits < logits.max(axis=1, keepdims=True)), np.float32(-1), logits)
    assert failed(verdict({"logits": logits}, {"logits": lost})) == {"recall"}
    assert verdict({"logits": logits}, rounded({"logits": logits}, 40)).verdict == "pass"


def test_one_label_of_several_that_is_lost_fails() -> None:
    probabilities = expit(several_labels(2000))
    lost = probabilities.copy()
    lost[:, 7] = np.minimum(lost[:, 7], 0.2)
    assert "recall" in failed(verdict({"probs": probabilities}, {"probs": lost}))


def test_logits_of_one_class_each_are_not_judged_by_their_sign() -> None:
    logits = (3 * RANDOM.normal(size=(MANY, 20)) - 4).astype(np.float32)
    logits[np.arange(MANY), np.arange(MANY) % 20] = 9
    assert verdict({"logits": logits}, rounded({"logits": logits}, 20)).verdict == "pass"


# Classes of positions.


def tagged(share: float = 0.005) -> Array:
    """Return the scores of 9 tags at 128 positions; all but the first are rare."""
    scores = RANDOM.normal(-1, 0.5, (MANY, 128, 9))
    scores[..., 0] = RANDOM.normal(8, 1.5, (MANY, 128))
    entity = RANDOM.uniform(size=(MANY, 128)) < share
    scores[entity, 0] = -1
    scores[entity, RANDOM.integers(1, 9, entity.sum())] = 8
    return scores.astype(np.float32)


def test_a_tagger_that_finds_no_entity_fails() -> None:
    scores = tagged()
    none = scores.copy()
    none[scores.argmax(axis=2) > 0] = [8, *[-1] * 8]
    assert failed(verdict({"logits": scores}, {"logits": none})) == {"recall"}
    assert verdict({"logits": scores}, rounded({"logits": scores})).verdict == "pass"


def test_a_tagger_that_mistakes_one_rare_tag_for_another_fails() -> None:
    scores = tagged()
    swapped = scores.copy()
    swapped[scores.argmax(axis=2) == 3] = [-1, 8, *[-1] * 7]
    assert "recall" in failed(verdict({"logits": scores}, {"logits": swapped}))


# Integers that are mostly the same.


def padded(width: int = 512) -> Array:
    ids = np.zeros((MANY, width), np.int64)
    ids[:, :5] = RANDOM.integers(1, 30000, (MANY, 5))
    return ids


def test_token_ids_that_are_all_wrong_beside_padding_fail() -> None:
    ids = padded()
    wrong = ids.copy()
    wrong[:, :5] += 1
    assert failed(verdict({"ids": ids}, {"ids": wrong})) == {"recall"}
    few = ids.copy()
    few[::60, 2] += 1
    assert verdict({"ids": ids}, {"ids": few}).verdict == "pass"


@pytest.mark.parametrize("dtype", [np.bool_, np.int64, np.uint8])
def test_a_map_of_integers_that_loses_its_object_fails(dtype: type[np.generic]) -> None:
    found = np.zeros((MANY, 64, 64), dtype)
    found[:, 10:16, 20:26] = 1
    edge = found.copy()
    edge[::7, 10, 20:26] = 0
    assert failed(verdict({"output": found}, {"output": np.zeros_like(found)})) == {"recall"}
    assert verdict({"output": found}, {"output": edge}).verdict == "pass"


def test_a_rare_value_of_integers_that_is_lost_fails() -> None:
    label = (np.arange(2000) % 400 == 0).astype(np.int64)
    assert failed(verdict({"output": label}, {"output": np.zeros_like(label)})) == {"recall"}


# Boxes.


def boxes(count: int = MANY, each: int = 10) -> dict[str, Array]:
    """Return boxes with scores, masks of 8 x 8, and classes, of which class 1 has 0.8 % of the boxes."""
    corner, size = RANDOM.uniform(0, 500, (count, each, 2)), RANDOM.uniform(30, 100, (count, each, 2))
    return {
        "boxes": np.concatenate([corner, corner + size], axis=2).astype(np.float32),
        "scores": RANDOM.uniform(0.35, 0.95, (count, each)).astype(np.float32),
        "labels": (np.arange(count * each) % 125 == 0).astype(np.int64).reshape(count, each),
        "masks": (RANDOM.uniform(size=(count, each, 8, 8)) > 0.6).astype(np.float32),
    }


def without(name: str, change: Callable[[Array], Array]) -> Comparison:
    made = boxes()
    return verdict(made, {**made, name: change(made[name])})


@pytest.mark.parametrize("change", [np.zeros_like, lambda masks: 1 - masks, lambda masks: np.roll(masks, 1, axis=0)])
def test_masks_of_boxes_that_are_ruined_fail(change: Callable[[Array], Array]) -> None:
    assert failed(without("masks", change)) == {"attached"}


def test_keypoints_that_only_follow_their_box_fail() -> None:
    made = boxes()
    low, high = made["boxes"][..., None, :2], made["boxes"][..., None, 2:]
    points = (low + (high - low) * RANDOM.uniform(size=(MANY, 10, 17, 2))).astype(np.float32)
    sure = np.ones((MANY, 10, 17, 1), np.float32)
    reference = {**made, "keypoints": np.concatenate([points, sure], axis=3)}
    middle = np.broadcast_to((low + high) / 2, points.shape)
    for wrong in (middle, points[:, :, ::-1]):
        candidate = {**made, "keypoints": np.concatenate([wrong, sure], axis=3).astype(np.float32)}
        assert failed(verdict(reference, candidate)) == {"attached"}
    assert verdict(reference, rounded(reference, 46)).verdict == "pass"


def test_masks_of_boxes_with_nan_fail() -> None:
    assert failed(without("masks", lambda masks: np.full_like(masks, np.nan))) == {"attached"}


def test_an_output_with_a_number_per_box_is_not_swallowed() -> None:
    made = {**boxes(), "attention_mask": np.ones((MANY, 10), np.int64)}
    assert verdict(made, made).verdict == "pass"
    assert failed(verdict(made, {**made, "attention_mask": np.zeros((MANY, 10), np.int64)})) == {"attached"}


@pytest.mark.parametrize("change", [lambda scores: 1.3 - scores, lambda scores: np.maximum(scores / 2, 0.3)])
def test_scores_of_boxes_that_change_without_crossing_the_threshold_fail(change: Callable[[Array], Array]) -> None:
    assert failed(without("scores", change)) == {"score_error"}


def test_a_rare_class_of_boxes_that_is_lost_fails() -> None:
    made = boxes()
    assert failed(verdict(made, {**made, "labels": np.zeros_like(made["labels"])})) >= {"recall"}
    lost = np.where(made["labels"] == 1, np.float32(0), made["scores"])
    assert failed(verdict(made, {**made, "scores": lost})) == {"recall"}


def test_boxes_with_the_noise_of_int8_pass() -> None:
    made = boxes()
    assert verdict(made, rounded(made, 46)).verdict == "pass"


# One number or few per sample, and a rare answer.


def rare_answer(count: int = 2000) -> Array:
    scores = np.stack([np.full(count, 20.5), np.full(count, 20.0)], axis=1) + 0.05 * RANDOM.normal(size=(count, 2))
    scores[::400, 1] += 3
    return scores.astype(np.float32)


def test_a_rare_answer_that_is_never_found_fails() -> None:
    scores = rare_answer()
    never = scores.copy()
    never[::400, 1] -= 3
    found = verdict({"logits": scores}, {"logits": never})
    assert failed(found) == {"recall"}
    assert "class 1 keeps 0 of FP32's 5 decisions" in next(g.reason for g in found.gates if g.metric == "recall")
    assert verdict({"logits": scores}, rounded({"logits": scores}, 50)).verdict == "pass"


def test_a_rare_yes_that_is_never_found_fails() -> None:
    yes = np.where(np.arange(2000) % 400 == 0, 0.8, 0.3).astype(np.float32)[:, None]
    assert "recall" in failed(verdict({"prob": yes}, {"prob": np.minimum(yes, 0.4)}))


def test_an_answer_that_is_lost_once_or_twice_does_not_fail() -> None:
    for times, expected in ((1, "pass"), (2, "inconclusive")):
        scores = np.tile(np.array([1.0, 0.0], np.float32), (2000, 1))
        scores[:times] = [0.0, 0.1]
        lost = scores.copy()
        lost[:times] = [0.1, 0.0]
        found = verdict({"logits": scores}, {"logits": lost})
        assert {gate.verdict for gate in found.gates if gate.metric == "recall"} == {expected}


def test_decisions_on_which_fp32_is_wrong_are_no_loss() -> None:
    labels = RANDOM.integers(0, 5, MANY)
    wrong = RANDOM.uniform(size=MANY) < 0.4
    scores = (10 + np.eye(5)[np.where(wrong, (labels + 1) % 5, labels)]).astype(np.float32)
    changed = np.where(wrong[:, None], np.roll(scores, 1, axis=1), scores)
    assert "recall" not in failed(verdict({"logits": scores}, {"logits": changed}, labels))
    assert "recall" in failed(verdict({"logits": scores}, {"logits": changed}))


# The class scores of a raw detection head.


HEADS: dict[str, Callable[[Array], Array]] = {
    "[n, 4 + c, anchors]": lambda head: head,
    "[n, anchors, 4 + c]": lambda head: np.transpose(head, (0, 2, 1)),
    "[n, 2 (4 + c), h, w]": lambda head: (
        head.reshape(-1, 24, 2, 10, 10).transpose(0, 2, 1, 3, 4).reshape(-1, 48, 10, 10)
    ),
    "[n, h, 4 + c, w]": lambda head: head.reshape(-1, 24, 20, 10).transpose(0, 2, 1, 3),
    "[n, all]": lambda head: head.reshape(len(head), -1),
}


def head(*, sparse: bool = False) -> Array:
    """Return boxes in pixels and the scores of 20 classes, [n, 24, 200]."""
    corners = 300 + 50 * RANDOM.normal(size=(MANY, 4, 200))
    if not sparse:
        return np.concatenate([corners, expit(3 * RANDOM.normal(size=(MANY, 20, 200)) - 3)], 1).astype(np.float32)
    scores = np.full((MANY, 20, 200), 1e-4)
    for sample in scores:
        sample[RANDOM.integers(0, 20, 3), RANDOM.integers(0, 200, 3)] = RANDOM.uniform(0.5, 0.9, 3)
    return np.concatenate([corners, scores], axis=1).astype(np.float32)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("layout", HEADS)
def test_a_head_that_loses_the_class_scores_of_a_few_samples_fails(layout: str, sparse: bool) -> None:
    whole = head(sparse=sparse)
    lost = whole.copy()
    lost[100:105, 4:] = 0
    change = HEADS[layout]
    found = verdict({"output0": change(whole)}, {"output0": change(lost)})
    assert failed(found) >= {"sqnr_part"}


@pytest.mark.parametrize("layout", HEADS)
def test_a_head_without_class_scores_fails_in_every_layout(layout: str) -> None:
    whole = head()
    lost = whole.copy()
    lost[:, 4:] = 0
    found = verdict({"output0": HEADS[layout](whole)}, {"output0": HEADS[layout](lost)})
    assert failed(found) >= {"cosine_part"}


def test_a_head_that_inverts_the_class_scores_of_one_sample_fails() -> None:
    whole = head()
    inverted = whole.copy()
    inverted[7, 4:] = 1 - inverted[7, 4:]
    assert failed(verdict({"output0": whole}, {"output0": inverted})) == {"sqnr_part"}


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("layout", HEADS)
def test_a_head_with_the_noise_of_int8_passes(layout: str, sparse: bool) -> None:
    whole = head(sparse=sparse)
    parts = [rounded({"part": part}, 24)["part"] for part in (whole[:, :4], whole[:, 4:])]
    noisy = np.concatenate(parts, axis=1)
    assert verdict({"output0": HEADS[layout](whole)}, {"output0": HEADS[layout](noisy)}).verdict == "pass"


# Many classes of pixels.


def test_a_segmentation_that_loses_two_of_its_150_classes_fails() -> None:
    classes = RANDOM.integers(0, 150, (MANY, 16, 16))
    lost = np.where(classes >= 148, 0, classes)
    assert failed(verdict({"seg": classes}, {"seg": lost})) == {"recall"}
    noisy = np.where(RANDOM.uniform(size=classes.shape) < 0.002, 0, classes)
    assert verdict({"seg": classes}, {"seg": noisy}).verdict == "pass"


def test_scores_of_pixels_that_lose_a_rare_class_fail() -> None:
    scores = RANDOM.normal(size=(MANY, 60, 16, 16)).astype(np.float32)
    scores[:, 59] -= 0.5
    lost = scores.copy()
    lost[:, 59] = -3
    assert "recall" in failed(verdict({"seg": scores}, {"seg": lost}))


# What is not a detection head, although parts of it are much larger than others.


def bordered() -> Array:
    """Return images from 0 to 255, [n, 3, 64, 64], of which 16 rows at either end are nearly black."""
    images = RANDOM.uniform(0, 255, (MANY, 3, 64, 64))
    images[:, :, :16] = RANDOM.uniform(0, 1, (MANY, 3, 16, 64))
    images[:, :, 48:] = RANDOM.uniform(0, 1, (MANY, 3, 16, 64))
    return images.astype(np.float32)


def features() -> Array:
    """Return 2048 features, [n, 2048], after a ReLU, of very different scales."""
    return (np.maximum(RANDOM.normal(-0.5, 1, (MANY, 2048)), 0) * RANDOM.lognormal(-2, 1.5, 2048)).astype(np.float32)


@pytest.mark.parametrize("made", [bordered, lambda: bordered().reshape(MANY, -1), features])
def test_small_values_beside_large_ones_are_not_class_scores(made: Callable[[], Array]) -> None:
    whole = made()
    assert verdict({"out": whole}, rounded({"out": whole}, 30)).verdict == "pass"


def test_the_batches_do_not_change_what_is_measured() -> None:
    """The parts of a head are those of the first samples, not of the first batch."""
    made = {**boxes(40), "output0": head()[:40], "ids": padded()[:40], "logits": tagged()[:40]}
    changed = rounded(made, 40)
    whole = verdict(made, changed).outputs
    metrics = {metric for output in whole for metric in output.values}
    assert metrics >= {"recall", "sqnr_part", "attached", "score_error"}
    for batch in (1, 7):
        assert verdict(made, changed, batch=batch).outputs == whole
