"""A tenth of ONNX's own node tests in FP32, FP16 and INT8 (`make operators` converts all), and how they are judged."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
from networks.small import Cli, convert
from node_cases import Case, cases
from node_outcomes import outcomes, quantized, shortfall


@pytest.fixture(scope="module")
def made() -> list[Case]:
    return cases()


def test_a_tenth_of_the_cases_passes_or_is_refused_in_one_line(made: list[Case]) -> None:
    faults = []
    for case in Random(1).sample(made, len(made) // 10):
        for precision, outcome in outcomes(case).items():
            if outcome.status == "fault":
                faults.append(f"{case.name} {precision}: {outcome.reason}")
    assert faults == []


@pytest.mark.parametrize(
    "name",
    [
        "test_attention_bidirectional_window",  # attributes of a later opset than the rewrite knew
        "test_attention_local_window_rank1_boolean_mask",
        "test_attention_23_boolmask_fullymasked_row_nan_robustness",  # a Softmax alone returns NaN
        "test_attention_causal_boolmask_nan_robustness",
    ],
)
def test_attention_that_is_more_than_products_and_a_softmax_passes(made: list[Case], name: str) -> None:
    case = next(case for case in made if case.name == name)
    assert {outcome.status for outcome in outcomes(case).values()} == {"passed"}


def test_a_case_keeps_an_input_and_has_its_weights_as_constants(made: list[Case]) -> None:
    assert all(case.feed or not case.model.graph.input for case in made)
    gemm = next(case for case in made if case.name == "test_gemm_transposeB")
    assert list(gemm.feed) == ["a"]
    assert {tensor.name for tensor in gemm.model.graph.initializer} == {"b", "c"}


X = np.random.default_rng(0).normal(size=100).astype(np.float32)


@pytest.mark.parametrize(
    ("reference", "result", "why"),
    [
        (X, X, ""),
        (X, X * 1.001, ""),
        (X, X * 1.1, "dB"),
        (X, X[:50], "shape"),
        (X, np.where(X > 2, np.inf, X), "infinite"),
        (np.where(X > 2, np.nan, X), np.where(X > 2, np.nan, X), ""),
        (np.arange(4), np.array([0, 1, 2, 4]), "25%"),
        (X * 0, X, "not 0"),
    ],
)
def test_an_output_falls_short(reference: np.ndarray, result: np.ndarray, why: str) -> None:
    found = shortfall({"y": reference}, {"y": result}, 45)
    assert why in found
    assert bool(found) == bool(why)


def test_a_weighted_operator_without_quantized_inputs_is_found(made: list[Case], tmp_path: Path, cli: Cli) -> None:
    case = next(case for case in made if case.name == "test_gemm_transposeB_wide")
    onnx.save(case.model, tmp_path / "model.onnx")
    samples = {name: np.repeat(array[None], 4, 0) for name, array in case.feed.items()}
    assert convert(cli, tmp_path, "int8", samples).code == 0
    assert quantized(tmp_path / "run") == (1, [])
    assert convert(cli, tmp_path, "int8", samples, "--keep", "Gemm").code == 0
    count, missing = quantized(tmp_path / "run")
    assert (count, len(missing)) == (0, 1)
