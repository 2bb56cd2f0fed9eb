"""Copies of ONNX graphs that onnxruntime runs as they are meant.

Touches: reads the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trtopt.graph.simulate import simulate


def rewritten(path: Path, *, simulates: bool = True) -> tuple[Any, bool]:
    """Return a copy of the model (an `onnx_ir.Model`) that onnxruntime runs as intended, or None if it runs as it is.

    16-bit computation is rewritten by `simulate` unless `simulates` is false; the second value tells whether it was.
    Input sizes that are written as 0, as some exporters write a dynamic size, become dynamic: onnxruntime would accept
    only empty samples.
    """
    from trtopt.graph.file import load_ir, load_proto

    inputs = [value.type.tensor_type.shape.dim for value in load_proto(path).graph.input]
    zero_sizes = any(dim.HasField("dim_value") and dim.dim_value == 0 for dims in inputs for dim in dims)
    simulates = simulates and is_16_bit(path)
    if not zero_sizes and not simulates:
        return None, False
    # They are imported on use: most graphs run as they are, and these take longer to import than a small one to load.
    import onnx_ir as ir

    from trtopt.graph.prepare import infer_shapes

    model = load_ir(path)
    for value in model.graph.inputs if zero_sizes else ():
        if value.shape is not None:
            value.shape = ir.Shape([None if dim == 0 else dim for dim in value.shape])
    infer_shapes(model)
    simulated = simulates and simulate(model)
    return (model if simulated or zero_sizes else None), simulated


def is_reduced(path: Path) -> bool:
    """Return whether an ONNX file computes in fewer bits than FP32: it has 16-bit values or Q/DQ nodes."""
    from trtopt.graph.file import load_proto

    return is_16_bit(path) or any(node.op_type == "QuantizeLinear" for node in load_proto(path).graph.node)


def is_16_bit(path: Path) -> bool:
    """Return whether an ONNX file contains FP16 or BF16 values."""
    return _has_types(path, "FLOAT16", "BFLOAT16")


def is_bf16(path: Path) -> bool:
    """Return whether an ONNX file contains BF16 values."""
    return _has_types(path, "BFLOAT16")


def _has_types(path: Path, *types: str) -> bool:
    import onnx

    from trtopt.graph.file import load_proto
    from trtopt.graph.query import has_types

    return has_types(load_proto(path).graph, tuple(map(onnx.TensorProto.DataType.Value, types)))


def with_distinct_names(path: Path) -> bytes:
    """Return a serialized model without the names of its nodes, which need not be unique in ONNX."""
    from trtopt.graph.file import load_proto
    from trtopt.graph.parsed import own

    proto = own(load_proto(path))
    for node in proto.graph.node:
        node.ClearField("name")
    return bytes(proto.SerializeToString())
