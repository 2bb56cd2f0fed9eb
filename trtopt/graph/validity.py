"""Validity of ONNX files, which are untrusted input: malformed graphs, and tensors whose data does not fit their shape.

Touches: reads the model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trtopt.errors import ModelError
from trtopt.graph.defaults import with_defaults
from trtopt.graph.explicit import for_checker
from trtopt.graph.parsed import is_completed

if TYPE_CHECKING:
    import onnx

_STANDARD = ("", "ai.onnx")
_OPTIMIZED = frozenset({"SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"})
"""Operators that onnxruntime's optimizer puts into ONNX's own domain, where they do not exist."""

_VALUES = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def check(path: Path, proto: onnx.ModelProto) -> None:
    """Raise an error unless ONNX's checker accepts the model, its types agree, it is dense, and in inference mode.

    Wrong shapes in the file are not an error: exporters write them, and they are inferred again.

    Args:
        path: the model.
        proto: its content, without external data.

    Raises:
        ModelError: the model is invalid, has sparse weights, or was exported in training mode.
    """
    import onnx

    try:
        onnx.checker.check_model(for_checker(proto) if is_completed(path) else str(path))
        onnx.shape_inference.infer_shapes(with_defaults(proto), check_type=True)
    except Exception as error:
        optimized = {node.op_type for node in proto.graph.node if node.domain in _STANDARD} & _OPTIMIZED
        fix = "Export it before onnxruntime's optimizer" if optimized else "Export it again"
        raise ModelError(f"{path} is not a valid ONNX model", why=root_line(error), fix=fix) from error
    sparse = next(sparse_weights(proto.graph), None)
    if sparse is not None:
        raise ModelError(
            f"{path} stores {sparse} as a sparse tensor",
            why="TensorRT's parser supports dense weights only",
            fix="Export it with dense weights",
        )
    training = [f"{node.name or node.output[0]} ({node.op_type})" for node in training_nodes(proto.graph)]
    if training:
        more = f", and {len(training) - 1} more" if len(training) > 1 else ""
        raise ModelError(
            f"{path} was exported in training mode",
            why=f"{training[0]}{more}: statistics of the batch are used, or values dropped at random",
            fix="Call model.eval() before the export",
        )


def sparse_weights(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names of the weights of a graph and its subgraphs that are stored as sparse tensors."""
    for sparse in graph.sparse_initializer:
        yield sparse.values.name
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor"):
                yield node.output[0]
            for subgraph in (attribute.g, *attribute.graphs):
                yield from sparse_weights(subgraph)


def training_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the BatchNormalization and Dropout nodes of a graph and its subgraphs that are in training mode."""
    import onnx

    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
    found = []
    for node in graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "BatchNormalization" and node.domain in _STANDARD:
            # Before opset 14 the statistics as outputs meant training.
            by_outputs = sum(map(bool, node.output)) > 1
            if by_outputs or ("training_mode" in attributes and attributes["training_mode"].i):
                found.append(node)
        elif node.op_type == "Dropout" and node.domain in _STANDARD and len(node.input) > 2:
            mode = constants.get(node.input[2])
            if mode is not None and onnx.numpy_helper.to_array(mode).any():
                found.append(node)
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                found += training_nodes(subgraph)
    return found


def contradiction(path: Path) -> str:
    """Return what ONNX's full checker, which infers all types and shapes, rejects in a model; empty if nothing."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # noqa: BLE001 - the checker has several kinds, and some are of protobuf
        return root_line(error)
    return ""


def check_names(path: Path, graph: onnx.GraphProto) -> None:
    """Raise an error unless all names in a graph and its subgraphs are UTF-8 text.

    protobuf returns the bytes of a name that is not, and libraries fail on it in their own ways.

    Raises:
        ModelError: a name is not UTF-8.
    """
    values = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    names = [value.name for value in values]
    names += [dim.dim_param for value in [*graph.input, *graph.output] for dim in value.type.tensor_type.shape.dim]
    for node in graph.node:
        names += [node.name, node.op_type, node.domain, *node.input, *node.output]
        for attribute in node.attribute:
            names.append(attribute.name)
            for subgraph in (attribute.g, *attribute.graphs):
                check_names(path, subgraph)
    for name in names:
        if not isinstance(name, str):
            raise ModelError(f"{path} is damaged", why=f"the name {name!r} is not UTF-8", fix="Export it again")


def check_inline(path: Path, tensor: onnx.TensorProto) -> None:
    """Raise an error unless a tensor that is stored in the model file has as much data as its shape and type need.

    Libraries check it only when they read the values, each in its own way.

    Raises:
        ModelError: its data does not fit.
    """
    what = f"{path} is damaged"
    try:
        dtype = type_name(tensor.data_type)
        count = math.prod(tensor.dims)
        if any(side < 0 for side in tensor.dims):
            raise ValueError(f"its shape is {list(tensor.dims)}")
        if tensor.HasField("raw_data"):
            needed, stored, unit = math.ceil(count * bits(tensor.data_type) / 8), len(tensor.raw_data), "bytes"
        else:
            needed, stored, unit = count, max(len(getattr(tensor, field)) for field in _VALUES), "values"
            # Pairs of numbers, and types of less than one byte, of which one entry contains several.
            if dtype.startswith("COMPLEX"):
                needed = 2 * count
            elif dtype != "STRING" and bits(tensor.data_type) < 8:
                needed = math.ceil(count * bits(tensor.data_type) / 8)
        if needed != stored:
            shape = "x".join(map(str, tensor.dims)) or "scalar"
            raise ValueError(f"{dtype} of shape {shape} needs {needed} {unit}, and it has {stored}")
    except ValueError as error:
        raise ModelError(what, why=f"tensor {tensor.name}: {error}", fix="Export it again") from error


def type_name(data_type: int) -> str:
    """Return the ONNX name of a data type, such as `FLOAT16`.

    Raises:
        ValueError: ONNX has no such type, or it is undefined.
    """
    import onnx

    name = str(onnx.TensorProto.DataType.Name(data_type))
    if name == "UNDEFINED":
        raise ValueError("its data type is undefined")
    return name


def bits(data_type: int) -> int:
    """Return the number of bits of a value of an ONNX data type.

    onnx-ir knows them as well, but takes 0.2 s to import, which a cached run would have to wait for.

    Raises:
        ValueError: the type has no size, as strings, or is unknown.
    """
    name = type_name(data_type)
    if name in ("BOOL", "DOUBLE", "FLOAT"):
        return {"BOOL": 8, "DOUBLE": 64, "FLOAT": 32}[name]
    match = re.match(r"[A-Z]+(\d+)", name)  # FLOAT8E4M3FN, INT4, BFLOAT16, COMPLEX64
    if match is None:
        raise ValueError(f"{name} values have no fixed size")
    return int(match[1])


def root_line(error: BaseException) -> str:
    """Return the first line of the exception that caused this one, without the libraries' exceptions around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip(" .\t") for line in str(error).splitlines() if line.strip()), type(error).__name__)
