"""The typed graph as users load it, beside the simulation that is reported."""

import math
from pathlib import Path

import numpy as np
import pytest
from support import CALIB, DIGITS, EVAL

from trtopt.compare.loaded import SAMPLES, loaded, warnings
from trtopt.compare.pair import Pair
from trtopt.data.dataset import Dataset
from trtopt.types import LoadedDrift

RNG = np.random.default_rng(0)
FP32 = RNG.normal(size=(20, 10)).astype(np.float32)


class Table:
    """Runner that looks the outputs of a sample up."""

    where = "numpy"

    def __init__(self, values):
        self.values = values
        self.runs = 0

    def run(self, feed):
        self.runs += 1
        return {"y": self.values[feed["i"]]}


def dataset(count=20):
    return Dataset(
        source="e", digest="d", ids=tuple(map(str, range(count))), load=lambda i: {"i": np.array([i])}, batched=True
    )


def test_a_few_samples_are_run_both_ways():
    as_loaded = Table(FP32 * 1.1)
    pair = Pair(baseline=Table(FP32), candidate=as_loaded, graph=Table(FP32 * 1.01), names=("a", "b"))
    (drift,) = loaded(pair, dataset())
    assert drift.loaded == pytest.approx(20, abs=0.1)
    assert drift.simulated == pytest.approx(40, abs=0.1)
    assert as_loaded.runs == SAMPLES


def test_fewer_samples_than_that_are_enough():
    table = Table(FP32)
    assert (
        loaded(Pair(baseline=table, candidate=table, graph=table, names=("a", "b")), dataset(2))[0].loaded == math.inf
    )


@pytest.mark.parametrize(
    ("metric", "own", "simulated", "told"),
    [
        ("sqnr", 1.6, 16.5, True),
        ("sqnr", 14.0, 16.5, False),  # rounding
        ("sqnr", 60.0, 90.0, False),  # both are good
        ("sqnr", math.nan, 16.5, True),
        ("sqnr", 30.0, 16.5, False),  # better, as it rounds less
        ("sqnr", math.inf, math.inf, False),
        ("equal", 90.0, 99.0, True),
        ("equal", 98.5, 99.0, False),
    ],
)
def test_a_loss_that_is_not_rounding_is_a_warning(metric, own, simulated, told):
    drift = LoadedDrift(output="y", metric=metric, loaded=own, simulated=simulated)
    found = warnings((drift,), "typed.onnx", "onnxruntime 1.0, CPU")
    assert len(found) == told
    assert all("typed.onnx itself, in onnxruntime 1.0" in line for line in found)


def flags(folder: Path, *more: object) -> list[object]:
    return ["convert", DIGITS, "--calib", CALIB, "--data", EVAL, "--backend", "onnxruntime", "-o", folder, *more]


def test_the_report_shows_the_loaded_graph_beside_the_simulated_one(cli, tmp_path):
    done = cli(*flags(tmp_path, "-p", "int8", "--no-guard", "--method", "minmax", "--samples", "64"))
    assert done.code == 0
    assert "as loaded" in done.out
    assert "default options" in done.out


def test_a_graph_that_onnxruntime_cannot_load_is_told_and_judged_all_the_same(cli, tmp_path):
    done = cli(*flags(tmp_path, "-p", "bf16", "--samples", "32"))
    assert done.code == 0
    said = " ".join(done.out.split())
    assert "not with onnxruntime's default options" in said
    assert "onnxruntime has few BF16 kernels on a CPU, and TensorRT takes BF16 from this graph" in said


def test_fp32_is_not_loaded_a_second_time(cli, tmp_path):
    assert "as loaded" not in cli(*flags(tmp_path, "-p", "fp32", "--samples", "32")).out
