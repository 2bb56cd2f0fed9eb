"""A transformer of one layer, node by node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def transformer(path: Path) -> Path:
    """Write an encoder layer with attention, layer norms and a GELU, at opset 17."""
    random = np.random.default_rng(0)
    size, heads = 32, 4
    names = dict.fromkeys(("wq", "wk", "wv", "wo"), (size, size)) | {"w1": (size, 64), "w2": (64, size)}
    weights = [numpy_helper.from_array((random.normal(size=s) / 6).astype(np.float32), n) for n, s in names.items()]
    weights += [numpy_helper.from_array(np.full(size, v, np.float32), n) for n, v in (("g", 1.5), ("b", 0.25))]
    weights += [numpy_helper.from_array(np.array([0, 0, heads, size // heads]), "split")]
    weights += [numpy_helper.from_array(np.array([0, 0, size]), "join")]
    weights += [
        numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("root", 2**0.5), ("one", 1), ("half", 0.5))
    ]
    node = helper.make_node
    nodes = [node("LayerNormalization", ["x", "g", "b"], ["n"], "norm1")]
    for part, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [node("MatMul", ["n", f"w{part}"], [f"m{part}"], f"m{part}")]
        nodes += [node("Reshape", [f"m{part}", "split"], [f"r{part}"], f"r{part}")]
        nodes += [node("Transpose", [f"r{part}"], [part], f"t{part}", perm=order)]
    nodes += [
        node("MatMul", ["q", "k"], ["s"], "scores"),
        node("Softmax", ["s"], ["p"], "softmax", axis=-1),
        node("MatMul", ["p", "v"], ["c"], "context"),
        node("Transpose", ["c"], ["ct"], "tc", perm=[0, 2, 1, 3]),
        node("Reshape", ["ct", "join"], ["cr"], "rc"),
        node("MatMul", ["cr", "wo"], ["o"], "out"),
        node("Add", ["x", "o"], ["h"], "add1"),
        node("LayerNormalization", ["h", "g", "b"], ["n2"], "norm2"),
        node("MatMul", ["n2", "w1"], ["f"], "up"),
        node("Div", ["f", "root"], ["fd"], "div"),
        node("Erf", ["fd"], ["fe"], "erf"),
        node("Add", ["fe", "one"], ["fa"], "adderf"),
        node("Mul", ["f", "fa"], ["fm"], "mul"),
        node("Mul", ["fm", "half"], ["u"], "halve"),
        node("MatMul", ["u", "w2"], ["d"], "down"),
        node("Add", ["h", "d"], ["y"], "add2"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 16, size]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "encoder", [ends[0]], [ends[1]], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    np.save(path.with_suffix(".npy"), random.normal(size=(8, 16, size)).astype(np.float32))
    return path
