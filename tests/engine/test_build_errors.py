"""Errors of builds that fail: messages of TensorRT 8.5.3.1 on an H200, and what a user is told."""

from __future__ import annotations

import pytest

from trtopt.engine.trt.diagnosis import build_error, logger
from trtopt.engine.trt.versions import RTX
from trtopt.types import Decision

_ENGINE = (
    "2: [builder.cpp::buildSerializedNetwork::751] Error Code 2: Internal Error (Assertion engine != nullptr failed. )"
)
_SCALES = (
    "2: [graphOptimizer.cpp::mergeScales::884] Error Code 2: Internal Error (Assertion equalOrZero("
    "{result.scale.count(), result.shift.count(), result.power.count()}) failed. )"
)
_INT8 = (
    "2: Error Code 2: Internal Error (Assertion !n->candidateRequirements.empty() failed. All of the candidates were"
    " removed, which points to the node being incorrectly marked as an int8 node.)"
)
_FUSING = "Running: DqQFusion on add/factors_fp16 + add/equalized/Mul"


def decided(**precisions: str) -> list[Decision]:
    return [Decision(node=op.lower(), op=op, precision=precision, reason="") for op, precision in precisions.items()]


def test_the_place_in_tensorrts_source_is_left_out_of_the_reason() -> None:
    error = build_error([_SCALES, _INT8], {}, {})
    assert error.why.startswith("Assertion equalOrZero({result.scale.count(), result.shift.count(), ")
    assert error.why.endswith(
        "; All of the candidates were removed, which points to the node being incorrectly marked as an int8 node"
    )
    assert "Error Code" not in error.why


def test_a_node_that_only_the_message_before_the_error_tells_is_named() -> None:
    error = build_error([_SCALES], {"add": "add", "mul": "mul"}, {"mul": "Mul"}, during="Running: DqQFusion on c + mul")
    assert "at Mul node mul" in error.what


def test_a_message_that_is_not_of_the_optimizer_names_no_node() -> None:
    error = build_error([_SCALES], {"mul": "mul"}, {"mul": "Mul"}, during="Timing Runner: mul (Myelin)")
    assert error.what == "TensorRT cannot build the network"


def test_a_mul_that_equalization_inserted_can_be_left_out() -> None:
    layers = {"add/equalized/Mul": "add/equalized/Mul"}
    error = build_error([_SCALES], layers, {"add/equalized/Mul": "Mul"}, decided(Conv="int8"), _FUSING)
    assert "at Mul node add/equalized/Mul" in error.what
    assert "--no-equalization" in error.fix


def test_without_a_node_the_operators_to_keep_are_those_that_save_little() -> None:
    decisions = decided(Conv="int8", Add="int8", GlobalAveragePool="int8", Relu="fp16", Softmax="fp32")
    error = build_error([_INT8], {}, {}, decisions)
    assert "--keep Add --keep GlobalAveragePool, or" in error.fix


def test_without_a_node_and_8_bits_there_is_nothing_to_keep() -> None:
    assert "--keep" not in build_error([_INT8], {}, {}, decided(Conv="fp16")).fix


def test_the_logger_remembers_the_message_before_the_first_error() -> None:
    module = pytest.importorskip(RTX)
    collector = logger(RTX)
    collector.errors.clear()
    for severity, message in (
        (module.ILogger.VERBOSE, _FUSING),
        (module.ILogger.ERROR, _SCALES),
        (module.ILogger.VERBOSE, "Deleting timing cache"),
        (module.ILogger.ERROR, _ENGINE),
        (module.ILogger.ERROR, _INT8),
    ):
        collector.log(severity, message)
    assert (collector.during, collector.errors) == (_FUSING, [_SCALES, _INT8])
    collector.errors.clear()
