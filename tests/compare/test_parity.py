"""The check of an export: its inputs, and its limit for drift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trtopt.compare import parity
from trtopt.data.dataset import Dataset
from trtopt.errors import ModelError
from trtopt.types import ShapeRange, TensorSpec

Array = NDArray[np.generic]
IDS = TensorSpec(name="ids", dtype="int64", shape=("batch", "length"))
IMAGE = TensorSpec(name="image", dtype="float32", shape=("batch", 3))
RANGES = (
    ShapeRange(name="ids", min=(1, 2), opt=(4, 6), max=(8, 9)),
    ShapeRange(name="image", min=(1, 3), opt=(4, 3), max=(8, 3)),
)


@dataclass(frozen=True)
class Fixed:
    """A runner that returns the same outputs for any feed."""

    outputs: Mapping[str, Array]
    where: str = "here"

    def run(self, feed: Mapping[str, Array]) -> Mapping[str, Array]:
        return self.outputs


def check(truth: list[Array], outputs: Mapping[str, Array]) -> parity.Comparison:
    reference = parity.Reference(name="net.pt2", ran="PyTorch", outputs=[truth])
    return parity.check(reference, Fixed(outputs), [{}], "1 random input")


def test_random_inputs_have_the_minimum_and_optimum_shapes_and_are_the_same_every_time() -> None:
    feeds = parity.random((IDS, IMAGE), RANGES)
    first, second = feeds.draw(), feeds.draw()
    assert [feed["ids"].shape for feed in first] == [(1, 2), (1, 2), (4, 6), (4, 6)]
    assert [feed["image"].dtype.name for feed in first] == ["float32"] * 4
    assert all((one[name] == two[name]).all() for one, two in zip(first, second, strict=True) for name in one)
    assert not (first[2]["image"] == first[3]["image"]).all()
    assert "seed 0" in feeds.source
    assert feeds.source.startswith("4 random inputs")


def test_random_integers_are_valid_ids_and_masks() -> None:
    for feed in parity.random((IDS,), RANGES).draw():
        assert set(np.unique(feed["ids"])) <= {0, 1}
        assert (feed["ids"][:, 0] == 1).all()


def test_the_digest_follows_the_shapes() -> None:
    other = (RANGES[0], ShapeRange(name="image", min=(1, 3), opt=(5, 3), max=(8, 3)))
    assert parity.random((IMAGE,), RANGES).digest == parity.random((IMAGE,), RANGES).digest
    assert parity.random((IMAGE,), RANGES).digest != parity.random((IMAGE,), other).digest


@pytest.mark.parametrize(("count", "batched", "feeds"), [(1, True, 1), (3, True, 4), (3, False, 3), (100, True, 9)])
def test_samples_are_spread_over_the_dataset_and_two_are_joined(count: int, batched: bool, feeds: int) -> None:
    dataset = Dataset(
        source="data",
        digest="d",
        ids=tuple(map(str, range(count))),
        load=lambda i: {"x": np.full((1, 2), i, np.float32)},
        batched=batched,
    )
    drawn = parity.from_data(dataset).draw()
    assert len(drawn) == feeds
    first, last = (drawn[0]["x"], drawn[min(count, 8) - 1]["x"])
    assert (first[0, 0], last[0, 0]) == (0, count - 1)
    if batched and count > 1:
        assert drawn[-1]["x"].shape == (2, 2)


@given(st.floats(1e-7, 1e-1), st.integers(0, 2**31))
def test_the_limit_is_a_relative_error_of_one_in_ten_thousand(error: float, seed: int) -> None:
    truth = np.random.default_rng(seed).normal(size=(2, 50)).astype(np.float64)
    found = check([truth], {"y": truth * (1 + error)})
    assert (found.verdict == "pass") == (error <= 1e-4) or abs(error - 1e-4) < 1e-9


def test_integers_must_be_equal() -> None:
    ids = np.arange(1000)
    assert check([ids], {"y": ids}).verdict == "pass"
    assert check([ids], {"y": np.where(ids == 7, 8, ids)}).verdict == "fail"


def test_the_kind_of_an_output_does_not_change_its_gate() -> None:
    mask = np.ones((1, 4, 4), np.int64)
    boxes = np.array([[[0, 0, 9, 9, 0.9, 1], [1, 1, 5, 5, 0.8, 2]]], np.float32)
    found = check([mask, boxes], {"mask": mask, "output0": boxes})
    assert [(gate.metric, gate.verdict) for gate in found.gates] == [("equal", "pass"), ("sqnr", "pass")]


def test_a_nan_fails() -> None:
    truth = np.ones((1, 4), np.float32)
    found = check([truth], {"y": np.where(np.arange(4) == 2, np.nan, truth).astype(np.float32)})
    assert found.verdict == "fail"


def test_every_output_is_judged() -> None:
    good, bad = np.ones((1, 4), np.float32), np.arange(4, dtype=np.float32)[None]
    found = check([good, good], {"a": good, "b": bad})
    assert [(gate.output, gate.passed) for gate in found.gates] == [("a", True), ("b", False)]


def test_another_number_of_outputs_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"has 1 output: the source itself has 2"):
        check([np.ones(1), np.ones(1)], {"a": np.ones(1)})


def test_the_line_gives_the_lowest_sqnr() -> None:
    ones = np.ones((1, 4), np.float64)
    assert parity.line(check([ones], {"y": ones * (1 + 1e-6)})).endswith("pass, SQNR at least 120 dB")
    assert parity.line(check([ones], {"y": ones})).endswith("pass, outputs are identical")
