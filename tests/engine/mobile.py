"""A small image network with a depthwise convolution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

SHAPES = {"w1": (32, 3, 3, 3), "w2": (32, 1, 3, 3), "w3": (64, 32, 1, 1), "w4": (64, 10)}


def depthwise(path: Path, behind: str) -> Path:
    """Write the network, with `behind` after the depthwise convolution b, and 64 samples for it to a .npy beside it."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 19]> g (float[n, 3, 32, 32] x) => (float[n, 10] y) {{
        a = Conv<pads = [1, 1, 1, 1]>(x, w1) r = Relu(a) b = Conv<pads = [1, 1, 1, 1], group = 32>(r, w2) h = {behind}
        c = Conv(h, w3) s = Relu(c) g = GlobalAveragePool(s) f = Flatten(g) y = Gemm(f, w4) }}"""
    )
    random = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        array = random.normal(0, np.sqrt(2 / np.prod(shape[1:] if len(shape) > 2 else shape[:1])), shape)
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    for node in model.graph.node:
        node.name = {"a": "stem", "b": "deep", "c": "point"}.get(node.output[0], node.output[0])
    onnx.save(model, path)
    np.save(path.with_suffix(".npy"), random.normal(size=(64, 3, 32, 32)).astype(np.float32))
    return path
