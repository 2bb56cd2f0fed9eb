"""Models for the benchmarks, built node by node with onnx, so that no training framework is needed.

Touches: writes the requested ONNX file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def resnet50(path: Path, seed: int = 0) -> Path:
    """Write a ResNet-50 (He et al. 2015, v1.5 strides) with random weights and folded batch norms.

    The input `input` is float32 [n, 3, 224, 224], and the output `logits` is float32 [n, 1000]. The weights are
    He-initialised and each residual branch is damped, so that activations stay in a plausible range. Such a model is
    suitable to measure time and memory, but not accuracy.
    """
    random = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def conv(
        x: str, name: str, shape: tuple[int, int, int, int], stride: int = 1, relu: bool = True, gain: float = 1.0
    ) -> str:
        out_channels, in_channels, kernel, _ = shape
        std = gain * np.sqrt(2.0 / (in_channels * kernel * kernel))
        weights.append(numpy_helper.from_array(random.normal(0, std, shape).astype(np.float32), f"{name}.weight"))
        weights.append(numpy_helper.from_array(random.normal(0, 0.05, out_channels).astype(np.float32), f"{name}.bias"))
        pad = kernel // 2
        nodes.append(
            helper.make_node(
                "Conv",
                [x, f"{name}.weight", f"{name}.bias"],
                [f"{name}.out"],
                name,
                kernel_shape=[kernel] * 2,
                strides=[stride] * 2,
                pads=[pad] * 4,
            )
        )
        return activation(f"{name}.out", name) if relu else f"{name}.out"

    def activation(x: str, name: str) -> str:
        nodes.append(helper.make_node("Relu", [x], [f"{name}.relu"], f"{name}.relu"))
        return f"{name}.relu"

    x = conv("input", "stem", (64, 3, 7, 7), stride=2)
    nodes.append(
        helper.make_node("MaxPool", [x], ["pool"], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    )
    x, channels = "pool", 64
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], start=1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = conv(x, f"{name}.conv1", (width, channels, 1, 1))
            y = conv(y, f"{name}.conv2", (width, width, 3, 3), stride)
            y = conv(y, f"{name}.conv3", (4 * width, width, 1, 1), relu=False, gain=0.3)
            if block == 0:
                x = conv(x, f"{name}.down", (4 * width, channels, 1, 1), stride, relu=False, gain=0.7)
            nodes.append(helper.make_node("Add", [y, x], [f"{name}.sum"], f"{name}.add"))
            x, channels = activation(f"{name}.sum", name), 4 * width
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["gap"], "gap"))
    nodes.append(helper.make_node("Flatten", ["gap"], ["features"], "flatten"))
    weights.append(numpy_helper.from_array(random.normal(0, 0.02, (1000, 2048)).astype(np.float32), "fc.weight"))
    weights.append(numpy_helper.from_array(np.zeros(1000, np.float32), "fc.bias"))
    nodes.append(helper.make_node("Gemm", ["features", "fc.weight", "fc.bias"], ["logits"], "fc", transB=1))
    graph = helper.make_graph(
        nodes,
        "resnet50",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 1000])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
