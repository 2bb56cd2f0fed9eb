"""Tests of the samples that a report shows: which they are, and what is said of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import CALIB, DIGITS, EVAL

from trtopt.compare.exhibits import SHOWN
from trtopt.compare.measures.outputs import Array, Outputs
from trtopt.compare.metrics import Metrics
from trtopt.data import Labelling, open_dataset
from trtopt.data.classes import from_list
from trtopt.data.preview import Preview
from trtopt.engine.onnxruntime import open_runner
from trtopt.graph.file import describe
from trtopt.types import Exhibit

RNG = np.random.default_rng(0)


def shown(name: str, x: Array, y: Array, *, batch: int, labels: tuple[int, ...] | None = None) -> tuple[Exhibit, ...]:
    """Return the exhibits of an output [n, ...] that is added in batches."""
    metrics = Metrics({}, apart=True, names={0: "zero", 1: "one"})
    for start in range(0, len(x), batch):
        part = slice(start, start + batch)
        indices = tuple(range(len(x)))[part]
        metrics.add(
            Outputs(
                reference={name: x[part]},
                candidate={name: y[part]},
                indices=indices,
                labels=labels and labels[part],
                previews=tuple(Preview(None, f"input {index}") for index in indices),
            )
        )
    ids = [f"s{index}" for index in range(len(x))]
    return metrics.exhibits(metrics.drifts(ids), ids)


@pytest.mark.parametrize("batch", [1, 7, 500])
def test_the_worst_samples_are_shown_whatever_the_batches(batch: int) -> None:
    x = RNG.choice([-1, 1], (500, 40)).astype(np.float32)  # all have the same energy
    y = x + RNG.normal(0, 0.01, x.shape).astype(np.float32)
    worst = [499, 3, 250, 17, 101, 102, 480, 0]
    for place, index in enumerate(worst):
        y[index] += 1.0 - place / 10
    found = shown("features", x, y, batch=batch)
    assert {each.index for each in found} == set(worst)
    assert found[0].sample == "s499"
    assert found[0].inputs == "input 499"
    (answer,) = found[0].answers
    assert answer.fp32 == ()
    assert answer.fp32_values.startswith(f"{x[499, 0]:.4g}, ")
    assert answer.figures["max_abs"] == pytest.approx(1, abs=0.1)


def test_samples_with_another_class_come_first() -> None:
    x = np.eye(10, dtype=np.float32)[RNG.integers(0, 10, 300)] * 5
    y = x + RNG.normal(0, 0.5, x.shape).astype(np.float32)
    y[[20, 200]] = x[[20, 200]] * 0.9
    y[[20, 200], 1] = 4.8
    x[[20, 200]] = y[[20, 200]] * 0 + np.eye(10, dtype=np.float32)[0] * 5
    found = shown("logits", x, y, batch=8, labels=(1,) * 300)
    assert {found[0].index, found[1].index} == {20, 200}
    assert len(found) == SHOWN
    assert found[0].label == "one"
    (answer,) = found[0].answers
    assert (answer.fp32[0].name, answer.candidate[0].name) == ("zero", "one")
    assert answer.fp32[0].score == 5.0


def test_equal_outputs_show_no_sample() -> None:
    x = RNG.normal(0, 1, (20, 4)).astype(np.float32)
    assert shown("features", x, x.copy(), batch=4) == ()


def test_integers_are_shown_by_their_values() -> None:
    x = np.arange(60).reshape(20, 3)
    y = x.copy()
    y[5, 1] = 0
    (found,) = shown("tokens", x, y, batch=4)
    assert (found.answers[0].fp32_values, found.answers[0].candidate_values) == ("15, 16, 17", "15, 0, 17")


def test_boxes_that_are_missed_are_shown() -> None:
    boxes = np.tile(np.array([[10, 10, 50, 50, 0.9, 1], [60, 60, 90, 90, 0.8, 2]], np.float32), (12, 1, 1))
    other = boxes.copy()
    other[7, 1, 4] = 0.0
    (found,) = shown("boxes", boxes, other, batch=5)
    assert found.index == 7


def test_a_comparison_shows_images_and_names_without_reading_a_sample_twice(tmp_path: Path) -> None:
    from trtopt.compare.pair import Pair
    from trtopt.compare.run import Measure, compare
    from trtopt.events import silent

    model = describe(DIGITS)
    names = from_list([f"digit {index}" for index in range(10)], "names")
    dataset = open_dataset(str(CALIB), model.inputs, labelling=Labelling(classes=None))
    dataset = replace(dataset, shown=replace(dataset.shown, names={v: k for k, v in names.index.items()}))
    loaded: list[int] = []
    load = dataset.load

    def counted(index: int) -> dict[str, Array]:
        loaded.append(index)
        return load(index)

    class Noisy:
        where = "here"
        callers = 1

        def __init__(self) -> None:
            self._runner = open_runner(DIGITS)

        def run(self, feed: dict[str, Array]) -> dict[str, Array]:
            return {name: (array * np.float32(1.01)) for name, array in self._runner.run(feed).items()}

    pair = Pair(baseline=open_runner(DIGITS), candidate=Noisy(), names=("a", "b"))
    found = compare(pair, replace(dataset, load=counted), Measure(), emit=silent)
    # The first sample is also run alone and beside the second, to find out whether samples may be joined.
    assert Counter(loaded) == Counter([0, 0, 1, *range(len(dataset))])
    assert len(found.exhibits) == SHOWN
    assert all(each.image.startswith("data:image/png;base64,") for each in found.exhibits)
    assert found.exhibits[0].answers[0].fp32[0].name.startswith("digit ")
    assert found.outputs[0].by_class is not None
    assert found.outputs[0].by_class.classes[3].name == "digit 3"


def test_several_candidates_share_the_space_for_images(cli: Callable[..., object], tmp_path: Path) -> None:
    from trtopt.commands.compare import ranked
    from trtopt.run import load

    done = cli(
        "convert", DIGITS, "-p", "fp16", "--calib", CALIB, "--data", EVAL, "--backend", "onnxruntime", "-o", tmp_path
    )
    assert done.code == 0  # type: ignore[attr-defined]
    comparison = load(tmp_path).comparison
    assert comparison is not None
    assert len(comparison.exhibits) == SHOWN
    from report.reports import SEVERAL

    rows = [replace(SEVERAL.candidates[0], name=str(i), comparison=comparison) for i in range(16)]
    assert [len(row.comparison.exhibits) for row in ranked(rows)] == [2] * 16
