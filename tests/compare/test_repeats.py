"""A model that draws random numbers is recognized, and never judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper
from support import save

from trtopt.commands.convert import convert
from trtopt.compare.repeats import check_repeats
from trtopt.data.dataset import Dataset
from trtopt.engine.onnxruntime import open_runner
from trtopt.errors import ModelError
from trtopt.graph.randomness import random_nodes
from trtopt.plan import ConvertPlan, DataPlan

NOISE = helper.make_node("RandomNormalLike", ["x"], ["noise"], "draw")
SAMPLES = np.random.default_rng(0).normal(size=(4, 16, 8, 8)).astype(np.float32)


def dataset(samples: np.ndarray = SAMPLES) -> Dataset:
    ids = tuple(map(str, range(len(samples))))
    return Dataset(source="d", digest="d", ids=ids, load=lambda i: {"x": samples[i : i + 1]}, batched=True)


def noisy(folder: Path, scale: float) -> Path:
    nodes = [NOISE, helper.make_node("Mul", ["noise", "s"], ["n"]), helper.make_node("Add", ["x", "n"], ["y"])]
    return save(folder / "noisy.onnx", nodes, [numpy_helper.from_array(np.float32(scale), "s")])


def test_the_operators_that_draw_are_named(tmp_path: Path) -> None:
    path = noisy(tmp_path, 0.1)
    assert random_nodes(path) == ["draw (RandomNormalLike)"]
    with pytest.raises(
        ModelError, match=r"output y does not repeat.*draws random numbers in draw \(RandomNormalLike\)"
    ):
        check_repeats(open_runner(path), dataset(), path)


def test_the_operators_of_a_branch_are_found(tmp_path: Path) -> None:
    branch = helper.make_graph([NOISE], "then", [], [helper.make_tensor_value_info("noise", 1, None)])
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["same"])], "else", [], [helper.make_tensor_value_info("same", 1, None)]
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=other)
    path = save(tmp_path / "if.onnx", [node], [numpy_helper.from_array(np.array(True), "c")])
    assert random_nodes(path) == ["draw (RandomNormalLike)"]


@pytest.mark.parametrize("training", [False, True])
def test_dropout_draws_in_training_mode_only(tmp_path: Path, training: bool) -> None:
    inputs = ["x", "ratio", "training"] if training else ["x", "ratio"]
    weights = [numpy_helper.from_array(np.float32(0.5), "ratio"), numpy_helper.from_array(np.array(True), "training")]
    path = save(tmp_path / "d.onnx", [helper.make_node("Dropout", inputs, ["y"], "drop")], weights[: len(inputs) - 1])
    assert random_nodes(path) == (["drop (Dropout)"] if training else [])


def test_noise_that_is_multiplied_by_zero_does_not_matter(tmp_path: Path) -> None:
    path = noisy(tmp_path, 0.0)
    check_repeats(open_runner(path), dataset(), path)


def test_a_model_that_changes_without_a_random_operator_is_recognized_by_two_runs(tmp_path: Path) -> None:
    path = save(tmp_path / "a.onnx", [helper.make_node("Abs", ["x"], ["y"])], [])

    class Counting:
        where = "numpy"
        runs = 0

        def run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            self.runs += 1
            return {"y": feed["x"] + np.float32(self.runs)}

    with pytest.raises(ModelError, match="two runs of one sample differ"):
        check_repeats(Counting(), dataset(), path)


def test_a_model_that_repeats_its_nan_and_infinities_repeats(tmp_path: Path) -> None:
    path = save(tmp_path / "log.onnx", [helper.make_node("Log", ["x"], ["y"])], [])
    check_repeats(open_runner(path), dataset(np.zeros_like(SAMPLES) - np.float32(1)), path)
    check_repeats(open_runner(path), dataset(np.zeros_like(SAMPLES)), path)


def test_convert_refuses_before_it_calibrates(tmp_path: Path) -> None:
    path = noisy(tmp_path, 0.1)
    np.savez(tmp_path / "data.npz", x=SAMPLES)
    data = DataPlan(source=str(tmp_path / "data.npz"))
    plan = ConvertPlan(source=path, precision="int8", run_dir=tmp_path / "run", calib=data, data=data)
    with pytest.raises(ModelError, match="draws random numbers"):
        convert(plan)
    assert not (tmp_path / "run/calibration.json").exists()
