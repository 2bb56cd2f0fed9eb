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


def bert_base(path: Path, seed: int = 0, length: int = 128) -> Path:
    """Write the encoder of BERT-base (Devlin et al. 2018: 12 layers, 768 wide, 12 heads) with random weights.

    The inputs `input_ids` and `attention_mask` are int64 [n, length], and the output `first`, the state of the first
    token, is float32 [n, 768]. The weights have the standard deviation of BERT's initialization, so that the network is
    suitable to measure time and memory, but not accuracy.
    """
    random = np.random.default_rng(seed)
    width, heads, inner, words = 768, 12, 3072, 30522
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def const(name: str, array: np.ndarray) -> str:  # type: ignore[type-arg]
        weights.append(numpy_helper.from_array(array, name))
        return name

    def drawn(name: str, *shape: int) -> str:
        return const(name, random.normal(0, 0.02, shape).astype(np.float32))

    def put(op: str, name: str, *inputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [f"{name}.out"], name, **attributes))
        return f"{name}.out"

    def norm(x: str, name: str) -> str:
        scale = const(f"{name}.scale", random.normal(1, 0.1, width).astype(np.float32))
        return put("LayerNormalization", name, x, scale, drawn(f"{name}.bias", width), axis=-1, epsilon=1e-12)

    def dense(x: str, name: str, size_in: int, size_out: int) -> str:
        product = put("MatMul", name, x, drawn(f"{name}.weight", size_in, size_out))
        return put("Add", f"{name}.add", product, drawn(f"{name}.bias", size_out))

    split = const("split", np.array([0, length, heads, width // heads], np.int64))
    merged = const("merged", np.array([0, length, width], np.int64))

    def divided(x: str, name: str, perm: tuple[int, ...]) -> str:
        return put("Transpose", f"{name}.heads", put("Reshape", f"{name}.split", x, split), perm=perm)

    float_mask = put("Cast", "mask.cast", "attention_mask", to=TensorProto.FLOAT)
    hidden = put("Sub", "mask.inverted", const("one", np.array(1, np.float32)), float_mask)
    hidden = put("Mul", "mask.scaled", hidden, const("masked", np.array(-10000, np.float32)))
    mask = put("Unsqueeze", "mask", hidden, const("mask.axes", np.array([1, 2], np.int64)))
    x = put("Gather", "words", drawn("words.table", words, width), "input_ids")
    x = norm(put("Add", "embedded", x, drawn("positions", length, width)), "embedding.norm")
    for layer in range(12):
        name = f"layer{layer}"
        q, k, v = (dense(x, f"{name}.{part}", width, width) for part in ("query", "key", "value"))
        scores = put(
            "MatMul",
            f"{name}.scores",
            divided(q, f"{name}.query", (0, 2, 1, 3)),
            divided(k, f"{name}.key", (0, 2, 3, 1)),
        )
        scores = put("Div", f"{name}.scale", scores, const(f"{name}.root", np.array(8, np.float32)))
        share = put("Softmax", f"{name}.softmax", put("Add", f"{name}.masked", scores, mask), axis=-1)
        mixed = put("MatMul", f"{name}.mixed", share, divided(v, f"{name}.value", (0, 2, 1, 3)))
        mixed = put("Reshape", f"{name}.joined", put("Transpose", f"{name}.back", mixed, perm=(0, 2, 1, 3)), merged)
        x = norm(put("Add", f"{name}.sum", dense(mixed, f"{name}.output", width, width), x), f"{name}.norm")
        wide = dense(x, f"{name}.up", width, inner)
        erf = put(
            "Erf",
            f"{name}.erf",
            put("Div", f"{name}.erf.in", wide, const(f"{name}.sqrt2", np.array(2**0.5, np.float32))),
        )
        gate = put("Add", f"{name}.erf.one", erf, "one")
        gelu = put(
            "Mul",
            f"{name}.gelu",
            put("Mul", f"{name}.gate", wide, gate),
            const(f"{name}.half", np.array(0.5, np.float32)),
        )
        x = norm(put("Add", f"{name}.sum2", dense(gelu, f"{name}.down", inner, width), x), f"{name}.norm2")
    nodes.append(helper.make_node("Gather", [x, const("zero", np.array(0, np.int64))], ["first"], "first", axis=1))
    graph = helper.make_graph(
        nodes,
        "bert_base",
        [helper.make_tensor_value_info(i, TensorProto.INT64, ["n", length]) for i in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("first", TensorProto.FLOAT, ["n", width])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
