"""The first look at samples: each is loaded, and calibration samples unlike the evaluation samples are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import CALIB, DIGITS, EVAL, Done

from trtopt.data import open_dataset
from trtopt.data.look import Look, look, unlike
from trtopt.errors import DataError
from trtopt.types import TensorSpec

Cli = Callable[..., Done]
X = TensorSpec(name="x", dtype="float32", shape=("n", 8))
VALUES = np.random.default_rng(3).normal(1, 2, (100, 8)).astype(np.float32)


def seen(folder: Path, values: np.ndarray) -> Look:
    np.savez(folder / "x.npz", x=values)
    return look(open_dataset(str(folder / "x.npz"), (X,)), lambda _: None)


def test_every_sample_is_loaded(tmp_path: Path) -> None:
    found = seen(tmp_path, VALUES)
    assert (found.samples, found.same) == (100, False)
    assert found.moments["x"] == pytest.approx((1, 2), abs=0.2)


@pytest.mark.parametrize("place", [0, 50, 99])
def test_one_bad_value_anywhere_is_an_error(place: int, tmp_path: Path) -> None:
    values = VALUES.copy()
    values[place, 3] = np.nan
    with pytest.raises(DataError, match=rf"x\.npz\[{place}\].*NaN"):
        seen(tmp_path, values)


def test_samples_of_a_fixed_batch_are_counted_one_by_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=VALUES)
    batch = TensorSpec(name="x", dtype="float32", shape=(32, 8))
    assert look(open_dataset(str(tmp_path / "x.npz"), (batch,)), lambda _: None).samples == 100


def test_samples_that_are_all_the_same_are_told_from_others(tmp_path: Path) -> None:
    assert seen(tmp_path, np.repeat(VALUES[:1], 9, axis=0)).same
    assert not seen(tmp_path, VALUES[:1]).same
    assert not seen(tmp_path, VALUES[:2]).same


def test_an_attention_mask_has_finite_moments(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[:, 0] = -np.inf
    assert np.isfinite(seen(tmp_path, values).moments["x"]).all()
    assert seen(tmp_path, np.full((3, 8), -np.inf, np.float32)).moments == {}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: x, False),
        (lambda x: x * 2 + 1, False),
        (lambda x: x * 255, True),
        (lambda x: x / 4.4, True),
        (lambda x: x + 5, True),
        (lambda x: x * 0 + 9, False),
    ],
    ids=["same", "near", "pixels", "unnormalized", "shifted", "constant"],
)
def test_samples_that_are_preprocessed_in_another_way_are_told(
    change: Callable[[np.ndarray], np.ndarray], told: bool, tmp_path: Path
) -> None:
    found = seen(tmp_path, VALUES)
    other = seen(tmp_path, change(VALUES[::-1].copy()).astype(np.float32))
    assert bool(unlike(other, found)) == bool(unlike(found, other)) == told


@pytest.mark.parametrize("value", [640.0, 0.485, 1 / 3, -1e4])
def test_an_input_that_is_constant_everywhere_is_no_difference(value: float, tmp_path: Path) -> None:
    full = [seen(tmp_path, np.full((count, 1000), value, np.float32)[:, :8]) for count in (200, 33)]
    assert unlike(*full) == []


def test_a_mask_that_is_padded_in_one_of_both_is_no_difference(tmp_path: Path) -> None:
    padded = np.ones((64, 8), np.float32)
    padded[:5, 6:] = 0
    assert unlike(seen(tmp_path, padded * 0 + 1), seen(tmp_path, padded)) == []


def test_values_whose_squares_overflow_are_not_measured(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    double = TensorSpec(name="x", dtype="float64", shape=("n", 8))
    np.savez(tmp_path / "x.npz", x=np.full((4, 8), 1e200))
    assert look(open_dataset(str(tmp_path / "x.npz"), (double,)), lambda _: None).moments == {}
    assert not recwarn.list


def test_every_sample_is_compared_with_the_first(tmp_path: Path) -> None:
    values = np.repeat(VALUES[:1], 127, axis=0)
    values[1::2] += np.arange(63, dtype=np.float32)[:, None] + 1
    assert not seen(tmp_path, values).same


@pytest.mark.parametrize("which", ["--calib", "--data"])
@pytest.mark.parametrize("kind", ["NaN", "cannot be read as an image"])
def test_a_bad_sample_is_told_before_the_graph_is_prepared(kind: str, which: str, cli: Cli, tmp_path: Path) -> None:
    bad = tmp_path / "bad.npz"
    if kind == "NaN":
        values = np.load(EVAL)["input"][:40].copy()
        values[-1, 0, 3, 3] = np.nan
        np.savez(bad, input=values)
    else:
        bad = tmp_path / "images"
        bad.mkdir()
        (bad / "a.png").write_bytes((image := next(CALIB.glob("*/*.png"))).read_bytes())
        (bad / "b.png").write_bytes(image.read_bytes()[:-60])
    given = {"--calib": CALIB, "--data": EVAL, which: bad}
    done = cli("convert", DIGITS, "-p", "int8", *sum(given.items(), ()), "-o", tmp_path / "run")
    assert done.code == 2
    assert kind in done.err
    assert "prepare" not in done.err


def test_wrong_scaling_of_the_calibration_samples_is_a_warning_also_when_cached(cli: Cli, tmp_path: Path) -> None:
    np.savez(tmp_path / "calib.npz", input=np.load(EVAL)["input"][:64] * np.float32(255))
    convert = (
        "convert", DIGITS, "-p", "int8", "--calib", tmp_path / "calib.npz", "--data", EVAL, "-o", tmp_path / "run",
        "--backend", "onnxruntime",
    )  # fmt: skip
    for _ in range(2):
        assert (
            "warning: the calibration samples are unlike those to compare on: the values of input" in cli(*convert).err
        )
    assert "the calibration samples are unlike" in (tmp_path / "run/report.html").read_text()
    last = cli(*convert).out.splitlines()[-1]
    assert last.startswith("FAIL: logits: top1")
    assert last.endswith(". Check the preprocessing first: the calibration samples are unlike those to compare on")
