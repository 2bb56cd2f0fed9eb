"""What counts as a jump: far above the peers, or too much for anyone; and the first of several."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from trtopt.compare import jump
from trtopt.types import LayerDrift


def layers(*levels: float, precision: str = "int8") -> list[LayerDrift]:
    """Layers n0, n1... that add noise of so many dB."""
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
        ([-70.0, -70.0, -70.0, -20.5], ""),  # far above the peers, and yet nothing to speak of
        ([-70.0, -70.0, -70.0, -19.5], "n3"),
        ([-25.0, -25.0, -25.0, -10.5], ""),
        ([-25.0, -25.0, -25.0, -9.5], "n3"),
        ([-5.0], "n0"),
        ([-40.0, -3.0, -41.0, 5.0, -40.0], "n1"),
        ([-40.0, -41.0, math.inf, -40.0], "n2"),
    ],
)
def test_the_first_layer_beyond_the_mark_is_the_jump(levels: list[float], expected: str) -> None:
    assert jump.find(layers(*levels), {})[0] == expected


def test_layers_are_held_against_those_of_their_own_precision() -> None:
    noisy = layers(*[-35.0] * 5)
    quiet = layers(-70, -70, -70, -19, precision="fp16")
    assert jump.find([*noisy, *quiet], {})[0] == "n3"
    assert jump.find([*noisy, *layers(-19)], {})[0] == ""


def test_the_reason_says_how_much_and_what_is_usual() -> None:
    reason = jump.find(layers(-40.0, -38.0, -41.0, -3.0), {})[1]
    assert reason == (
        "n3 (Conv, int8) adds noise of -3.0 dB of its output's energy even to FP32's own inputs, where the median of "
        "the 4 int8 nodes is -40.0 dB; in the whole network what it reads is 20.0 dB and its result 10.0 dB"
    )


def test_the_reason_of_no_jump_names_the_noisiest() -> None:
    reason = jump.find(layers(-40.0, -33.0, -41.0), {})[1]
    assert reason == (
        "no layer stands out: the noisiest, n1 (Conv, int8), adds -33.0 dB of its output's energy, and a jump is "
        "-18.0 dB or more"
    )


def test_the_reason_names_nodes_whose_noise_counts_to_the_jump() -> None:
    reason = jump.find(layers(-3.0), {"n0": ("a", "b", "c", "d")})[1]
    assert reason.endswith("it may be due to nodes before it that FP32's graph has no tensor of: a, b, c, ...")


def test_a_reason_of_no_jump_says_what_could_not_be_looked_at() -> None:
    reason = jump.find(layers(-40.0, -33.0), {"n0": ("a",), "n1": ("a", "b")})[1]
    assert reason.endswith(
        "; 2 nodes have no counterpart in FP32's graph, and the noise counts to the next that has one"
    )


def test_a_graph_that_adds_no_noise_has_no_jump() -> None:
    exact = [replace(row, added=0.0) for row in layers(-40.0, -40.0)]
    assert jump.find(exact, {}) == ("", "no layer adds any noise")
