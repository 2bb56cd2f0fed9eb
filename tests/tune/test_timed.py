"""Costs from the times of an engine's layers, as the engine inspector of TensorRT 8.5 names them."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trtopt.tune.search import Group
from trtopt.tune.timed import by_node, is_slower, joined, measured, slower, total
from trtopt.types import EngineLayer, TimedLayer

REFORMAT = "Reformatting CopyNode for Input Tensor 0 to add"
FUSED = "conv1.weight + w/DequantizeLinear_dequantize_scale_node + conv1 + relu1"
WORK = {"conv1": 90.0, "relu1": 10.0, "add": 5.0, "conv2": 50.0}


def engine_layer(name: str, *nodes: str, apart: str = "") -> EngineLayer:
    return EngineLayer(name=name, type="CaskConvolution", precision="int8", tactic="t", nodes=nodes, apart=apart)


def layer(*nodes: str, ms: float, noise: float = 0.0, runs: int = 50) -> TimedLayer:
    series = ms + noise * np.random.default_rng(len(nodes)).normal(size=runs)
    return TimedLayer(name=" + ".join(nodes), nodes=nodes, ms=tuple(series.tolist()))


def cost(speed: Any, *nodes: str) -> tuple[float, float]:
    named = [SimpleNamespace(name=node) for node in nodes]
    return sum(speed.cost(node, {}) for node in named), sum(speed.saving(node, {}) for node in named)


def group(*nodes: str) -> Group:
    return Group(name=nodes[0], nodes=nodes, saving=0.0)


def test_layers_have_their_times() -> None:
    layers = [engine_layer(FUSED, "conv1", "relu1"), engine_layer(REFORMAT, "add", apart="reformat")]
    found = joined(layers, {FUSED: [1.0, 2.0]})
    assert [(each.nodes, each.ms) for each in found] == [(("conv1", "relu1"), (1.0, 2.0)), (("add",), ())]
    assert total(found).tolist() == [1.0, 2.0]


def test_a_fused_layer_is_divided_by_the_work_of_its_nodes() -> None:
    found = by_node([layer("conv1", "relu1", ms=1.0), layer("head", "tail", ms=0.4), layer(ms=0.2)], WORK)
    assert {name: round(float(np.median(series)), 6) for name, series in found.items()} == {
        "conv1": 0.9, "relu1": 0.1, "head": 0.2, "tail": 0.2, "": 0.2,
    }  # fmt: skip


def test_a_saving_counts_what_lowering_a_node_costs_around_it() -> None:
    half = [layer("conv1", ms=2.0), layer("add", ms=1.0), layer(ms=0.25)]
    reformat = TimedLayer(name=REFORMAT, nodes=("add",), ms=(0.75,) * 50)
    speed = measured(half, [layer("conv1", ms=1.0), layer("add", ms=0.5), reformat], WORK)
    assert cost(speed, "conv1") == (2.0, 1.0)
    assert cost(speed, "add") == (1.0, -0.25)
    assert speed.rest == 0.25


@pytest.mark.parametrize(
    ("half", "quantized", "noise", "is_one"),
    [(1.0, 0.5, 0.0, False), (1.0, 0.985, 0.0, True), (1.0, 1.2, 0.0, True), (1.0, 0.95, 0.5, True)],
)
def test_a_group_must_save_two_percent_and_more_than_the_noise(
    half: float, quantized: float, noise: float, is_one: bool
) -> None:
    found = slower([group("conv1")], [layer("conv1", ms=half)], [layer("conv1", ms=quantized, noise=noise)], WORK)
    assert [each.group.name for each in found] == ["conv1"] * is_one


def test_a_group_whose_time_is_unknown_is_not_said_to_be_slower() -> None:
    assert slower([group("other")], [layer("conv1", ms=1.0)], [layer("conv1", ms=2.0)], WORK) == []


def test_the_nodes_of_a_group_are_judged_together() -> None:
    half = [layer("query", ms=1.0), layer("key", ms=1.0)]
    assert slower([group("query", "key")], half, [layer("query", "key", ms=1.5)], WORK) == []


def series(*values: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array(values * 10)


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [([1.01], [1.0], False), ([1.03], [1.0], True), ([1.03, 0.6, 1.5], [1.0, 0.5, 1.6], False)],
)
def test_an_engine_is_slower_by_more_than_two_percent_and_the_noise(
    new: Sequence[float], old: Sequence[float], expected: bool
) -> None:
    assert is_slower(series(*new), series(*old)) == expected
