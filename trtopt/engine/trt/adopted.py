"""An engine that trtexec built from the graph of a run: checked against the run, and audited as far as its layers tell.

Touches: reads the engine; the GPU.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trtopt.engine.runner.tensorrt import deserialize
from trtopt.engine.trt import weak
from trtopt.engine.trt.audit import count_inspected, layers_of
from trtopt.engine.trt.builder import devices
from trtopt.engine.trt.fusion import engine_layers
from trtopt.engine.trt.locate import TensorRT
from trtopt.errors import AuditError, ModelError
from trtopt.events import Emit, Warned
from trtopt.types import Engine, EngineLayer, OnnxModel, ShapeRange, TypedModel

_FIX = "Build it with build.sh of the run"


def adopt(trt: TensorRT, typed: TypedModel, profile: Sequence[ShapeRange], path: Path, *, emit: Emit) -> Engine:
    """Return the description of an engine, after checks of its tensors, shapes and layers.

    Args:
        trt: the TensorRT package that built the engine.
        typed: the typed graph of the run and its decisions.
        profile: the range of shapes of each dynamic input.
        path: the engine file. Loading runs code from it.
        emit: receives warnings.

    Raises:
        EnvironmentUnableError: this TensorRT does not load the engine here.
        ModelError: the file is not an engine, or one of another graph or for other shapes.
        AuditError: no layer computes in the precision of the run, or a node that must stay in FP32 runs in FP16.
    """
    engine = deserialize(trt, path)
    _check_tensors(engine, typed.onnx, path)
    _check_shapes(engine, typed.onnx, profile, path)
    described = layers_of(trt, engine)
    layers = engine_layers(described, typed)
    _check_nodes(layers, path)
    counts = count_inspected(described) if trt.can.strong_typing else _weak_counts(described, typed, trt, emit)
    _check_precision(counts, typed, trt, path)
    if not counts.keys() - {"unknown"}:
        emit(Warned(f"the precision of the layers of {path.name} is not known: add --profilingVerbosity=detailed"))
    data = path.read_bytes()
    return Engine(
        path=path,
        digest=hashlib.sha256(data).hexdigest(),
        backend="tensorrt",
        builder=trt.title,
        device=devices(trt, counts),
        size_bytes=len(data),
        audit=counts,
        audited="engine inspector",
        layers=layers,
    )


def _check_tensors(engine: Any, graph: OnnxModel, path: Path) -> None:
    found = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    expected = {spec.name for spec in (*graph.inputs, *graph.outputs)}
    if found != expected:
        raise ModelError(
            f"{path.name} is the engine of another graph than {graph.path}",
            why=f"its inputs and outputs are {', '.join(sorted(found))}, not {', '.join(sorted(expected))}",
            fix=_FIX,
        )


def _check_shapes(engine: Any, graph: OnnxModel, profile: Sequence[ShapeRange], path: Path) -> None:
    ranges = {entry.name: (entry.min, entry.opt, entry.max) for entry in profile}
    for spec in graph.inputs:
        shape = tuple(engine.get_tensor_shape(spec.name))
        dynamic = -1 in shape
        found = tuple(map(tuple, engine.get_tensor_profile_shape(spec.name, 0))) if dynamic else (shape,) * 3
        expected = ranges.get(spec.name, found)
        if found != expected:
            raise ModelError(
                f"{path.name} is for other shapes of {spec.name} than the run",
                why=f"{_written(found)}, not {_written(expected)}",
                fix=f"{_FIX}, or convert again with --shape {spec.name}={_written(found)}",
            )


def _written(shapes: Sequence[Sequence[int]]) -> str:
    return ":".join(dict.fromkeys("x".join(map(str, shape)) for shape in shapes))


def _check_nodes(layers: Sequence[EngineLayer], path: Path) -> None:
    if layers and not any(layer.nodes for layer in layers):
        raise ModelError(
            f"{path.name} is the engine of another graph than that of the run",
            why="none of its layers names a node of the graph",
            fix=_FIX,
        )


def _weak_counts(layers: list[Mapping[str, Any]], typed: TypedModel, trt: TensorRT, emit: Emit) -> Mapping[str, int]:
    try:
        return weak.audit(layers, typed, emit)
    except AuditError as error:
        fused = weak.raised(layers, typed, trt.title)
        keeps = shlex.join(word for decision in fused for word in ("--keep", f"{decision.node}=fp32"))
        fix = f"Convert again with {keeps}, and run build.sh" if keeps else _FIX
        raise AuditError(error.what, why=error.why, fix=fix) from error


def _check_precision(counts: Mapping[str, int], typed: TypedModel, trt: TensorRT, path: Path) -> None:
    """Raise AuditError if layers are known, and none computes in the precision of the run.

    In a weakly typed network TensorRT may choose FP32 for everything that may be in FP16.
    """
    known, name = counts.keys() - {"unknown"}, typed.precision
    free = name == "fp32" or (name == "fp16" and not trt.can.strong_typing)
    lowered = sum(decision.precision == name for decision in typed.decisions)
    if known and lowered and not free and name not in known:
        raise AuditError(
            f"no layer of {path.name} computes in {name.upper()}",
            why=f"{lowered} nodes of the run's graph are in {name.upper()}",
            fix=_FIX,
        )
