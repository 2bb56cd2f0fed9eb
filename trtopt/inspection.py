"""Inspection of an ONNX file, a run directory or an engine, without running it.

Touches: reads the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trtopt.engine.trt.refusal import Refusal
from trtopt.types import Decision, Engine, OnnxModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Contents of a model.

    Attributes:
        path: the inspected file or directory.
        onnx: its ONNX model.
        operators: the number of nodes by operator.
        parameters: the number of elements in all constants.
        weights: the size of the constants by dtype, in bytes.
        decided: `typed` if the decisions were made by a conversion, `int8 would` if they are those of one to INT8, and
            so on.
        decisions: the precision of each node.
        engine: the engine of a run directory.
        asked: the TensorRT whose parser was asked about unsupported nodes. Empty if it was not asked.
        refused: the nodes that it does not support.
    """

    path: Path
    onnx: OnnxModel
    operators: Mapping[str, int]
    parameters: int
    weights: Mapping[str, int]
    decided: str
    decisions: tuple[Decision, ...]
    engine: Engine | None = None
    asked: str = ""
    refused: tuple[Refusal, ...] = ()
