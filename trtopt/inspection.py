"""Look into an ONNX file, a run directory or an engine, without running anything.

Touches: reads the files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trtopt.engine.refusal import Refusal
from trtopt.types import Decision, Engine, OnnxModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What is in a model.

    `parameters` counts the elements of all constants, `weights` their bytes by type. `decisions` are those that were
    made (`decided` is `typed`), or those that INT8 would make (`int8 would`); empty when there is nothing to decide.
    `asked` names the TensorRT that was asked for nodes that it refuses, `refused`; empty: it was not.
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


def look(path: Path, *, tensorrt: bool = False) -> Inspection:
    """Describe what `path` stands for; with `tensorrt`, ask TensorRT's parser whether it takes every node.

    Raises:
        EnvironmentUnableError: TensorRT is to be asked, and there is none.
        UsageError: it does not exist.
        ModelError: it cannot be read, or no manifest vouches for it.
    """
    from trtopt.candidate import resolve
    from trtopt.export.onnx import load_ir

    candidate = resolve(path)
    model = load_ir(candidate.onnx.path)
    asked, refused = _ask(candidate.onnx.path) if tensorrt else ("", ())
    parameters = 0
    weights: Counter[str] = Counter()
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.dtype is not None:
            parameters += value.const_value.size
            weights[value.dtype.name.lower()] += value.const_value.nbytes
    typed = candidate.typed
    return Inspection(
        path=path,
        onnx=candidate.onnx,
        operators=dict(Counter(node.op_type for node in model.graph).most_common()),
        parameters=parameters,
        weights=dict(weights.most_common()),
        decided="typed" if typed else "int8 would",
        decisions=typed.decisions if typed else _would_decide(candidate.onnx.path),
        engine=candidate.engine,
        asked=asked,
        refused=refused,
    )


def _ask(path: Path) -> tuple[str, tuple[Refusal, ...]]:
    from trtopt.engine import tensorrt
    from trtopt.engine.refusal import explain

    trt = tensorrt.find(None)
    return trt.title, explain(path, tensorrt.check(trt, path))


def _would_decide(path: Path) -> tuple[Decision, ...]:
    from trtopt.errors import ModelError
    from trtopt.export.onnx import load_ir
    from trtopt.export.prepare import infer_shapes
    from trtopt.precision.placement import place

    model = load_ir(path)
    infer_shapes(model)
    try:
        placement = place(model)
    except ModelError:  # quantized already: there is nothing left to decide
        return ()
    return placement.decisions()
