"""The search for the nodes that make an engine wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtopt.stages.fault import culprits, difference, only_in, search
from trtopt.types import Decision, Engine, EngineLayer, OnnxModel, TypedModel


def engine(wrong: set[str], calls: list[int]) -> Callable[[Sequence[str]], bool]:
    """Return `right` of an engine that is wrong unless all the `wrong` nodes are kept."""

    def right(kept: Sequence[str]) -> bool:
        calls.append(len(kept))
        return wrong <= set(kept)

    return right


@given(st.integers(1, 60), st.data())
def test_the_wrong_nodes_are_found_and_no_others(count: int, data: st.DataObject) -> None:
    names = [f"n{i}" for i in range(count)]
    wrong = data.draw(st.sets(st.sampled_from(names), min_size=1, max_size=3))
    found = culprits(names, engine(wrong, []), most=100)
    assert found is not None
    assert set(found) == wrong


def test_one_wrong_node_of_64_takes_few_builds() -> None:
    calls: list[int] = []
    assert culprits([f"n{i}" for i in range(64)], engine({"n41"}, calls), most=24) == ["n41"]
    assert len(calls) <= 8


def test_nothing_is_found_if_the_engine_is_wrong_for_another_reason() -> None:
    assert culprits(["a", "b"], lambda kept: False, most=24) is None
    assert culprits([], lambda kept: True, most=24) is None


@pytest.mark.parametrize("most", range(1, 12))
def test_with_few_builds_the_result_still_makes_the_engine_right(most: int) -> None:
    calls: list[int] = []
    right = engine({"n3", "n30"}, calls)
    found = culprits([f"n{i}" for i in range(40)], right, most=most)
    assert len(calls) <= most + 1
    assert found is not None
    assert right(found)


def layer(*nodes: str, type: str = "CaskConvolution", tactic: str = "t") -> EngineLayer:
    return EngineLayer(name=" + ".join(nodes), type=type, precision="int8", tactic=tactic, nodes=nodes)


STEM, HEAD = layer("stem"), layer("head")
APART = (STEM, layer("depthwise", type="CudaDepthwiseConvolution"), layer("pointwise"), HEAD)
FUSED = (STEM, layer("depthwise", "pointwise", type="FusedDepSepConvolution"), HEAD)
NODES = ["stem", "depthwise", "pointwise", "head"]


def built(layers: tuple[EngineLayer, ...]) -> Engine:
    return Engine(
        path=Path("e"), digest="", backend="", builder="", device="", size_bytes=0, audit={}, audited="", layers=layers
    )


def lowered(nodes: Sequence[str]) -> TypedModel:
    decisions = tuple(Decision(node=node, op="Conv", precision="int8", reason="") for node in nodes)
    return TypedModel(
        onnx=OnnxModel(path=Path("m"), digest="", opset=19, inputs=(), outputs=()),
        precision="int8",
        rest="fp16",
        decisions=decisions,
    )


def test_the_layer_that_only_the_wrong_build_has_is_named() -> None:
    said = difference(built(FUSED), built(APART), lowered(NODES))
    assert said.endswith("only the wrong one computes depthwise, pointwise by FusedDepSepConvolution")


def test_nodes_that_were_not_lowered_are_not_named() -> None:
    assert "computes pointwise by" in difference(built(FUSED), built(APART), lowered(["stem", "pointwise"]))


def test_another_kernel_is_a_difference_if_there_is_no_other() -> None:
    other = [layer("a"), layer("b", tactic="u")]
    assert only_in([layer("a"), layer("b")], other) == [layer("b")]
    assert only_in([layer("a", "b"), layer("c")], [layer("a"), layer("b"), layer("c", tactic="u")]) == [layer("a", "b")]


def test_two_builds_of_the_same_layers_name_no_nodes() -> None:
    assert difference(built(APART), built(APART), lowered(NODES)).endswith("TensorRT chose other kernels")


def test_a_graph_whose_builds_are_all_wrong_is_searched_by_keeping_nodes() -> None:
    found = search(NODES, lambda kept: "depthwise" in kept)
    assert found.nodes == ("depthwise",)


def test_kept_nodes_must_make_a_second_build_right() -> None:
    calls: list[Sequence[str]] = []

    def right(kept: Sequence[str]) -> bool:
        calls.append(kept)
        return "head" in kept and len(calls) < 5

    assert search(NODES, right).nodes == ()
