"""Damage to files, by seed: bits and bytes of any file, and valid protobuf with a wrong graph."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from support import Done

_OPERATORS = ["Relu", "Conv", "MatMul", "Softmax", "Gemm", "Add", "LSTM", "Cast", "Reshape", "If", "NoSuchOperator"]
_TYPES = [0, TensorProto.UINT8, TensorProto.INT64, TensorProto.STRING, TensorProto.FLOAT16, TensorProto.BFLOAT16, 99]


def damaged(data: bytes, random: Random) -> bytes:
    """Return the bytes with some bits flipped, some overwritten, a piece removed or doubled, or the end cut off."""
    changed = bytearray(data)
    at = random.randrange(len(changed))
    length = random.choice([1, 10, 1000])
    way = random.randrange(5)
    if way == 0:
        for _ in range(random.choice([1, 3, 20])):
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    elif way == 1:
        del changed[at : at + length]
    elif way == 2:  # near the start, where headers are
        for _ in range(5):
            changed[random.randrange(min(3000, len(changed)))] = random.randrange(256)
    elif way == 3:
        changed[at:at] = changed[at : at + length]
    else:
        del changed[at:]
    return bytes(changed)


def damaged_model(data: bytes, random: Random) -> bytes:
    """Return an ONNX file with damaged bytes, or with one or two of its fields set to something that is not valid."""
    if random.random() < 0.6:
        return damaged(data, random)
    model = onnx.load_model_from_string(data)
    for _ in range(random.choice([1, 2])):
        random.choice(_EDITS)(model, random)
    return bytes(model.SerializeToString())


def _other_operator(model: onnx.ModelProto, random: Random) -> None:
    random.choice(model.graph.node).op_type = random.choice(_OPERATORS)


def _other_domain(model: onnx.ModelProto, random: Random) -> None:
    random.choice(model.graph.node).domain = random.choice(["com.microsoft", "nowhere"])


def _other_input(model: onnx.ModelProto, random: Random) -> None:
    """Connect an input to nothing, to a later node (a cycle) or to the graph's input."""
    node = random.choice([node for node in model.graph.node if node.input])
    names = ["", "nowhere", model.graph.node[-1].output[0], model.graph.input[0].name]
    node.input[random.randrange(len(node.input))] = random.choice(names)


def _fewer_inputs(model: onnx.ModelProto, random: Random) -> None:
    node = random.choice(model.graph.node)
    del node.input[random.randrange(len(node.input) + 1) :]


def _other_attribute(model: onnx.ModelProto, random: Random) -> None:
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    attribute = random.choice(attributes)
    if attribute.ints:
        attribute.ints.append(random.choice([-5, 0, 10**9]))
    else:
        attribute.i = random.choice([-1, 0, 2**40])


def _other_tensor_shape(model: onnx.ModelProto, random: Random) -> None:
    tensor = random.choice(model.graph.initializer)
    tensor.dims[:] = [random.choice([0, -1, 1, 3, 2**31]) for _ in range(random.randrange(1, 5))]


def _other_tensor_type(model: onnx.ModelProto, random: Random) -> None:
    random.choice(model.graph.initializer).data_type = random.choice(_TYPES)


def _other_input_shape(model: onnx.ModelProto, random: Random) -> None:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[random.randrange(len(dims))].dim_value = random.choice([0, -1, 7, 2**40])


def _other_input_type(model: onnx.ModelProto, random: Random) -> None:
    model.graph.input[0].type.tensor_type.elem_type = random.choice(_TYPES)


def _other_opset(model: onnx.ModelProto, random: Random) -> None:
    model.opset_import[0].version = random.choice([0, 1, 5, 9, 99])


def _node_twice(model: onnx.ModelProto, random: Random) -> None:
    model.graph.node.insert(0, random.choice(model.graph.node))


def _other_output(model: onnx.ModelProto, random: Random) -> None:
    model.graph.output[0].name = random.choice(["nowhere", "", model.graph.input[0].name])


_EDITS = [
    _other_operator,
    _other_domain,
    _other_input,
    _fewer_inputs,
    _other_attribute,
    _other_tensor_shape,
    _other_tensor_type,
    _other_input_shape,
    _other_input_type,
    _other_opset,
    _node_twice,
    _other_output,
]


def fault(done: Done, run: Path | None = None) -> str:
    """Return how a command handled a damaged file badly; an empty string if it did not.

    Args:
        done: the result of the command.
        run: the run directory of a conversion.
    """
    said = done.out + done.err
    if "Traceback" in said or "internal error" in said:
        return f"a traceback or an internal error: {done.err.splitlines()[-1][:200]}"
    if done.code not in range(5):
        return f"exit code {done.code}"
    if done.code == 2 and done.err.count("error:") != 1:
        return f"not one line that begins with error: {done.err[:200]!r}"
    left = [name for name in ("typed.onnx", "model.engine") if run is not None and (run / name).exists()]
    if done.code == 2 and left:
        return f"failed, and left {left[0]}"
    if done.code == 0 and run is not None and "typed.onnx" not in left:
        return "exit code 0 without a typed graph"
    return ""


def transformer(path: Path) -> Path:
    """Write an attention block with a layer norm: `ids` is int64 [n, 8], `y` float32 [n, 8, 16]."""
    size = 16
    nodes = [helper.make_node("Gather", ["embedding", "ids"], ["x"], "gather")]
    for name in ("q", "k", "v"):
        nodes.append(helper.make_node("MatMul", ["x", f"w{name}"], [name], f"matmul_{name}"))
    nodes += [
        helper.make_node("Transpose", ["k"], ["kt"], "transpose", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"], "matmul_scores"),
        helper.make_node("Mul", ["scores", "scale"], ["scaled"], "mul"),
        helper.make_node("Softmax", ["scaled"], ["weights"], "softmax", axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["mixed"], "matmul_mixed"),
        helper.make_node("Add", ["mixed", "x"], ["sum"], "add"),
        helper.make_node("LayerNormalization", ["sum", "gain", "shift"], ["y"], "norm", axis=-1),
    ]
    shapes = {
        "embedding": (50, size),
        **{f"w{name}": (size, size) for name in "qkv"},
        "gain": (size,),
        "shift": (size,),
    }
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 8])]
    return _write(path, nodes, inputs, helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8, size]), shapes)


def lstm(path: Path) -> Path:
    """Write an LSTM with a classifier: `x` is float32 [n, 6, 8], `y` float32 [n, 4]."""
    hidden = 16
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], "transpose", perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "w", "r", "b"], ["", "h"], "lstm", hidden_size=hidden),
        helper.make_node("Squeeze", ["h", "axis"], ["last"], "squeeze"),
        helper.make_node("Gemm", ["last", "out", "bias"], ["y"], "gemm"),
    ]
    shapes = {
        "w": (1, 4 * hidden, 8),
        "r": (1, 4 * hidden, hidden),
        "b": (1, 8 * hidden),
        "out": (hidden, 4),
        "bias": (4,),
    }
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6, 8])]
    return _write(path, nodes, inputs, helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4]), shapes)


def quantized(path: Path) -> Path:
    """Write a matrix product with Q/DQ nodes, as onnxruntime writes it: `x` is float32 [n, 16], `y` float32 [n, 16]."""
    rng = np.random.default_rng(0)
    constants = {
        "scale": np.float32(0.02),
        "zero": np.uint8(128),
        "codes": rng.integers(-127, 128, (16, 16)).astype(np.int8),
        "scales": np.linspace(0.001, 0.004, 16, dtype=np.float32),
        "bias_codes": rng.integers(-999, 999, 16).astype(np.int32),
        "bias_scale": np.float32(0.0001),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], "dequantize"),
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["w"], "weight", axis=1),
        helper.make_node("DequantizeLinear", ["bias_codes", "bias_scale"], ["b"], "bias"),
        helper.make_node("Gemm", ["dq", "w", "b"], ["y"], "gemm"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 16]) for name in "xy"]
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _write(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    output: onnx.ValueInfoProto,
    shapes: dict[str, tuple[int, ...]],
) -> Path:
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(0, 0.2, shape).astype(np.float32), name) for name, shape in shapes.items()
    ]
    weights += [numpy_helper.from_array(np.array([0]), "axis"), numpy_helper.from_array(np.float32(0.25), "scale")]
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(nodes, "net", inputs, [output], [weight for weight in weights if weight.name in read])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
