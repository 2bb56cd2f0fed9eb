"""The first divergent layer: an error far above the peers, or too large for any layer."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from trtopt.compare import jump
from trtopt.types import LayerDrift


def layers(*levels: float, precision: str = "int8") -> list[LayerDrift]:
    """Return layers n0, n1... whose errors are so many dB relative to their outputs."""
    return [
        LayerDrift(
            node=f"n{i}",
            op="Conv",
            tensor=f"t{i}",
            precision=precision,
            sqnr=10.0,
            sqnr_in=20.0,
            added=10 ** (level / 10) if math.isfinite(level) else math.inf,
        )
        for i, level in enumerate(levels)
    ]


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([-40.0, -38.0, -41.0], ""),
        ([-40.0, -38.0, -41.0, -17.5], "n3"),  # 22 dB above the median of -40
        ([-40.0, -38.0, -41.0, -18.5], ""),
        ([-70.0, -70.0, -70.0, -20.5], ""),  # far above the peers, but negligible
        ([-70.0, -70.0, -70.0, -19.5], "n3"),
        ([-25.0, -25.0, -25.0, -10.5], ""),
        ([-25.0, -25.0, -25.0, -9.5], "n3"),
        ([-5.0], "n0"),
        ([-40.0, -3.0, -41.0, 5.0, -40.0], "n1"),
        ([-40.0, -41.0, math.inf, -40.0], "n2"),
    ],
)
def test_the_first_layer_above_the_threshold_is_the_divergent_one(levels: list[float], expected: str) -> None:
    assert jump.find(layers(*levels), {})[0] == expected


def test_layers_are_compared_with_those_of_their_own_precision() -> None:
    noisy = layers(*[-35.0] * 5)
    quiet = layers(-70, -70, -70, -19, precision="fp16")
    assert jump.find([*noisy, *quiet], {})[0] == "n3"
    assert jump.find([*noisy, *layers(-19)], {})[0] == ""


def test_the_reason_gives_the_error_and_the_median() -> None:
    reason = jump.find(layers(-40.0, -38.0, -41.0, -3.0), {})[1]
    assert reason == (
        "n3 (Conv, int8) adds a quantization error of -3.0 dB relative to its output, even with exact FP32 inputs "
        "(median of the 4 int8 nodes: -40.0 dB); in the whole network its inputs have an SQNR of 20.0 dB and its "
        "output has 10.0 dB"
    )


def test_the_reason_for_no_divergent_layer_names_the_largest_error() -> None:
    reason = jump.find(layers(-40.0, -33.0, -41.0), {})[1]
    assert reason == (
        "no divergent layer: n1 (Conv, int8) has the largest quantization error, -33.0 dB relative to its output, and "
        "the threshold is -18.0 dB"
    )


def test_the_reason_names_nodes_without_a_counterpart_as_possible_causes() -> None:
    reason = jump.find(layers(-3.0), {"n0": ("a", "b", "c", "d")})[1]
    assert reason.endswith(
        "the cause may also be nodes before it without a counterpart in the FP32 graph: a, b, c, ..."
    )


def test_the_reason_for_no_divergent_layer_counts_nodes_without_a_counterpart() -> None:
    reason = jump.find(layers(-40.0, -33.0), {"n0": ("a",), "n1": ("a", "b")})[1]
    assert reason.endswith(
        "; 2 nodes have no counterpart in the FP32 graph, and their errors count toward the next node that has one"
    )


def test_a_graph_without_quantization_errors_has_no_divergent_layer() -> None:
    exact = [replace(row, added=0.0) for row in layers(-40.0, -40.0)]
    assert jump.find(exact, {}) == ("", "no layer adds any quantization error")
