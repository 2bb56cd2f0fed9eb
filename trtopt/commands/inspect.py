"""`trtopt inspect`: what a model or a run directory holds, and what a conversion would decide.

Touches: reads the model, and prepares it in a temporary folder; TensorRT's parser, if asked for.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from trtopt.engine.trt.refusal import Refusal
from trtopt.errors import UsageError
from trtopt.events import silent
from trtopt.inspection import Inspection
from trtopt.types import Decision, Only


def look(path: Path, *, tensorrt: bool = False, only: Only | None = None) -> Inspection:
    """Return the contents of the model at `path`; with `tensorrt`, also the nodes that TensorRT does not support.

    `only` are the only nodes that a conversion of the model would lower.

    Raises:
        EnvironmentUnableError: `tensorrt` is set, but TensorRT is not available.
        UsageError: `path` does not exist, or `only` names no node, or the precisions of the model are decided already.
        ModelError: the model cannot be read or prepared, or no manifest records it.
    """
    from trtopt.candidate import resolve
    from trtopt.graph.file import load_ir

    candidate = resolve(path)
    if only is not None and candidate.typed:
        raise UsageError("--only has no effect", why=f"the precisions of {path} are decided", fix="Give the FP32 model")
    # First, because it refuses an invalid model.
    decisions = candidate.typed.decisions if candidate.typed else _would_decide(candidate.onnx.path, only)
    model = load_ir(candidate.onnx.path)
    asked, refused = _ask(candidate.onnx.path) if tensorrt else ("", ())
    parameters = 0
    weights: Counter[str] = Counter()
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.dtype is not None:
            parameters += value.const_value.size
            weights[value.dtype.name.lower()] += value.const_value.nbytes
    return Inspection(
        path=path,
        onnx=candidate.onnx,
        operators=dict(Counter(node.op_type for node in model.graph).most_common()),
        parameters=parameters,
        weights=dict(weights.most_common()),
        decided="typed" if candidate.typed else "int8 would",
        decisions=decisions,
        engine=candidate.engine,
        asked=asked,
        refused=refused,
    )


def _ask(path: Path) -> tuple[str, tuple[Refusal, ...]]:
    """Return the name of the TensorRT in use, and the nodes that its parser does not support."""
    from trtopt.engine.trt import apart
    from trtopt.engine.trt.locate import find
    from trtopt.engine.trt.refusal import explain

    trt = find()
    return trt.title, explain(path, apart.check(trt, path, silent).rejections)


def _would_decide(path: Path, only: Only | None) -> tuple[Decision, ...]:
    """Return the decisions that a conversion to INT8 would make: those for the prepared graph, which is converted.

    Raises:
        ModelError: the model cannot be prepared.
    """
    from trtopt.errors import ModelError
    from trtopt.graph.file import load_ir
    from trtopt.graph.prepare import prepare
    from trtopt.graph.widen import in_fp32, is_in_fp32
    from trtopt.precision import Request, formats, precision
    from trtopt.precision.passes import bodies
    from trtopt.precision.passes.keep import keep
    from trtopt.precision.passes.placement import place
    from trtopt.precision.passes.wanted import resolve

    with tempfile.TemporaryDirectory(prefix="trtopt-") as folder:
        source = path
        if not is_in_fp32(path):
            source = Path(folder) / "widened.onnx"
            in_fp32(path, source)
        prepared = prepare(source, Path(folder), min_opset=precision("int8").FORMAT.opset, profile=())
        model = load_ir(prepared.path)
        try:
            placed = place(model, resolve(model, (), only)).decisions()
        except ModelError:  # the model is already quantized
            return ()
        kept = {node.name: reason for node, reason in keep(model, formats(16)["fp16"], Request()).items()}
        return (
            *(
                replace(decision, precision="fp32", reason=kept[decision.node])
                if decision.precision == "fp16" and decision.node in kept
                else decision
                for decision in placed
            ),
            *bodies.decisions(model.graph),
        )
