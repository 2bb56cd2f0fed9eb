"""Conversion of models that are not in FP32: every float16, bfloat16 and float64 tensor becomes float32.

Precision is decided later, from FP32. Graph inputs and outputs keep their types, by casts, except bfloat16,
which NumPy does not have.

Touches: `in_fp32` reads a model and writes its copy; `widen` changes the onnx-ir model it is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.errors import ModelError
from trtopt.graph.file import load_ir, load_proto
from trtopt.graph.query import cast, has_types, names, unique
from trtopt.graph.validity import root_line
from trtopt.wording import counted

if TYPE_CHECKING:
    import onnx_ir as ir

_CODES = (10, 11, 16)
"""ONNX's codes of float16, float64 and bfloat16."""

_TYPES = {"FLOAT16": "float16", "BFLOAT16": "bfloat16", "DOUBLE": "float64"}
_CAST_OPSET = 13
_TYPE_ATTRIBUTES = frozenset(
    "to dtype output_dtype output_datatype precision stash_type softmax_precision qk_matmul_precision".split()
)
"""Attributes that contain an ONNX data type."""


def is_in_fp32(source: Path) -> bool:
    """Return whether no tensor of an ONNX file is float16, bfloat16 or float64.

    Raises:
        ModelError: as `load_proto`.
    """
    return not has_types(load_proto(source).graph, _CODES)


def in_fp32(source: Path, path: Path) -> str:
    """Write a copy of a model to `path` that is in FP32, and return a note on it.

    Raises:
        ModelError: the model is invalid, or depends on the bits of values of another type.
    """
    from trtopt.graph.prepare import infer_shapes, save

    model = load_ir(source)
    try:
        infer_shapes(model)
        _check_bits(model, source)
        note = widen(model)
        infer_shapes(model)
        drop_casts(model.graph)
        save(model, path)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{source} is not a valid ONNX model", why=root_line(error), fix="Export it again") from error
    return note


def _check_bits(model: ir.Model, source: Path) -> None:
    """Raise a `ModelError` if a node reads or writes the bits of values that would become float32."""
    for node in model.graph.all_nodes():
        dtypes = [
            value.dtype for value in [*node.inputs, *node.outputs] if value is not None and _is_other(value.dtype)
        ]
        if node.op_type == "BitCast" and dtypes and dtypes[0] is not None:
            name, kind = node.name or node.outputs[0].name, _TYPES[dtypes[0].name]
            raise ModelError(
                f"{source} cannot be converted to float32",
                why=f"BitCast {name} depends on the bits of {kind} values",
                fix="Export it without BitCast",
            )


def widen(model: ir.Model) -> str:
    """Widen the model in place, and return a note on it; empty if the model has no such tensor.

    Values beyond float32's range are clamped to it. Types must have been inferred, as far as possible.
    """
    graph = model.graph
    found = Counter(_TYPES[value.dtype.name] for value in _values(model) if value.dtype and _is_other(value.dtype))
    if not found:
        return ""
    taken = names(graph)
    model.opset_imports.setdefault("", _CAST_OPSET)  # for the casts, if all operators are of other domains
    _cast_inputs(graph, taken)
    _cast_outputs(graph, taken)
    inputs = {value for value in graph.inputs if _keeps_type(value)}
    outputs = {value for value in graph.outputs if _keeps_type(value)}
    for value in _values(model):
        if value not in inputs | outputs and _is_other(value.dtype):
            _widen_value(value)
    boundary = {node for value in inputs for node, _ in value.uses()} | {value.producer() for value in outputs}
    for node in [*graph.all_nodes(), *(node for function in model.functions.values() for node in function.all_nodes())]:
        if node not in boundary or node.op_type != "Cast":
            _widen_attributes(node)
    counts = ", ".join(counted(count, f"{name} tensor") for name, count in found.items())
    return f"{counts} converted to float32 first"


def _is_other(dtype: ir.DataType | None) -> bool:
    """Return whether the data type is a floating-point type that is widened."""
    return dtype is not None and dtype.name in _TYPES


def _keeps_type(value: ir.Value) -> bool:
    """Return whether an input or output has a type that is cast beside it."""
    return _is_other(value.dtype) and value.dtype is not None and value.dtype.name != "BFLOAT16"


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """Yield all values of the model, those of subgraphs and functions too."""
    for graph in (model.graph, *model.graph.subgraphs(), *(function.graph for function in model.functions.values())):
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _cast_inputs(graph: ir.Graph, taken: set[str]) -> None:
    """Insert a Cast to float32 between every input of another type and its consumers."""
    import onnx_ir as ir

    for value in graph.inputs:
        uses = list(value.uses())
        if not _keeps_type(value) or not uses:
            continue
        wide = cast(graph, value, ir.DataType.FLOAT, unique(f"{value.name}/wide", taken), taken)
        for node, index in uses:
            node.replace_input_with(index, wide)


def _cast_outputs(graph: ir.Graph, taken: set[str]) -> None:
    """Insert a Cast from float32 before every output of another type; the cast's result takes the output's name."""
    for index, value in enumerate(graph.outputs):
        if not _keeps_type(value) or value.is_graph_input():
            continue
        dtype, name = value.dtype, value.name or ""
        assert dtype is not None
        value.name = unique(f"{name}/wide", taken)
        result = cast(graph, value, dtype, name, taken)
        graph.outputs[index] = result


def _widen_value(value: ir.Value) -> None:
    import onnx_ir as ir

    if value.const_value is not None:
        value.const_value = ir.tensor(_to_float32(value.const_value.numpy()), name=value.name)
    value.type = ir.TensorType(ir.DataType.FLOAT)


def _widen_attributes(node: ir.Node) -> None:
    """Convert constants in attributes, and the types that attributes state."""
    import onnx_ir as ir

    for name, attribute in list(node.attributes.items()):
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.TENSOR and _is_other(attribute.as_tensor().dtype):
            array = _to_float32(attribute.as_tensor().numpy())
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(array))
        is_type = name in _TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT
        if is_type and attribute.as_int() in _CODES:
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))


def _to_float32(array: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Return the array in float32. Finite values stay finite, and values other than 0 stay other than 0."""
    limits = np.finfo(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        wide = array.astype(np.float32)
    overflowed = np.isinf(wide) & np.isfinite(array.astype(np.float64))
    vanished = (wide == 0) & (array != 0)
    wide = np.where(overflowed, np.copysign(limits.max, wide), wide)
    return np.where(vanished, np.copysign(limits.tiny, wide), wide).astype(np.float32)


def drop_casts(graph: ir.Graph) -> None:
    """Remove the casts from float32 to float32 that widening leaves, as between the parts of an autocast model."""
    import onnx_ir as ir

    for node in list(graph.all_nodes()):
        if node.op_type != "Cast" or node.domain not in ("", "ai.onnx"):
            continue
        value, result = node.inputs[0], node.outputs[0]
        same = value is not None and value.dtype == result.dtype == ir.DataType.FLOAT
        if value is not None and same and not result.is_graph_output():
            result.replace_all_uses_with(value)
            assert node.graph is not None
            node.graph.remove(node, safe=True)
