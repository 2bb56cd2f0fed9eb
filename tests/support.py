"""Paths and helpers for several test modules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "samples/digits/model.onnx"
CALIB = ROOT / "calibration/digits"
EVAL = ROOT / "samples/digits/eval.npz"


@dataclass(frozen=True)
class Done:
    """Result of a command: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    shape: tuple[int | str, ...] = ("n", 16, 8, 8),
    out: tuple[int | str, ...] = ("n", 16, 8, 8),
) -> Path:
    """Write a net with one input `x` and one output `y`, at opset 17."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
