"""ONNX's own node tests as networks: weights and parameters become initializers, and the other inputs samples.

The tests of the `onnx` package give everything as an input. A network has its weights as constants, and so does every
shape, axis or scale that TensorRT must know when it builds.

Touches: the folder it is given.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Array = np.ndarray[Any, Any]

FLOATING = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
)
SAMPLES = 4
"""Calibration samples per case: the case's own inputs, and shuffled copies of them."""

_AFTER_FIRST = range(1, 16)
_RECURRENT = (1, 2, 3, 7)  # W, R, B and P
_CONSTANT_INPUTS: dict[str, Iterable[int]] = {
    # weights
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul", "PRelu"), _AFTER_FIRST),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _RECURRENT),
    **dict.fromkeys(
        ("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization"),
        _AFTER_FIRST,
    ),
    "DeformConv": (1, 3),
    "CausalConvWithState": (1, 2),
    "QLinearConv": (1, 2, 3, 4, 5, 6, 7, 8),
    "QLinearMatMul": (1, 2, 3, 4, 5, 6, 7),
    # shapes, axes, scales and other parameters
    **dict.fromkeys(
        "AffineGrid CenterCropPad Clip Col2Im CumProd CumSum DFT DequantizeLinear Dropout Expand MaxUnpool "
        "NonMaxSuppression OneHot Pad QuantizeLinear Reshape Resize STFT Slice Split SplitToSequence Squeeze Tile TopK "
        "Trilu Unsqueeze Upsample ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin "
        "ReduceProd ReduceSum ReduceSumSquare".split(),
        _AFTER_FIRST,
    ),
    "MaxUnpool": (2,),
    "NonMaxSuppression": (2, 3, 4),
    "ConstantOfShape": (0,),
}
"""Positions of the inputs that are weights or parameters in a network, by operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A node test as a network.

    Attributes:
        name: the name of the test.
        operator: the operator that it tests.
        model: the network, with initializers.
        feed: its inputs.
        expected: its outputs as ONNX defines them, by name; the tests allow `rtol` and `atol`.
    """

    name: str
    operator: str
    model: onnx.ModelProto
    feed: Mapping[str, Any]
    expected: Mapping[str, Any]
    rtol: float
    atol: float

    def write(self, folder: Path) -> Path:
        """Write `model.onnx` and the samples, one file each, into the folder `samples`; return the model's path."""
        onnx.save(self.model, folder / "model.onnx")
        (folder / "samples").mkdir()
        rng = np.random.default_rng(0)
        for number in range(SAMPLES):
            arrays = {name: _sample(array, rng, shuffle=number > 0) for name, array in self.feed.items()}
            np.savez(folder / f"samples/{number}.npz", **arrays)
        return folder / "model.onnx"

    def shapes(self) -> tuple[str, ...]:
        """Return the flags `--shape` of the inputs with a size of 0, which ONNX files also use for a dynamic size."""
        flags = []
        for name, array in self.feed.items():
            if 0 in array.shape:
                least, most = ("x".join(str(max(size, low)) for size in array.shape) for low in (0, 1))
                flags.append(f"{name}={least}:{most}:{most}")
        return tuple(flags)


def _sample(array: Array, rng: np.random.Generator, *, shuffle: bool) -> Array:
    """Return floating-point values in another order along one axis, which keeps them in the operator's domain.

    NaN and infinities, which samples may not contain, are replaced by other values of the array.
    """
    if array.dtype.kind != "f" or not array.size:
        return array
    finite = array[np.isfinite(array)]
    array = np.where(np.isfinite(array), array, np.resize(finite if finite.size else 1, array.shape))
    axis = next((axis for axis, size in enumerate(array.shape) if size > 1), None)
    return rng.permutation(array, axis=axis) if shuffle and axis is not None else array.copy()


def cases() -> list[Case]:
    """Return the node tests that have a floating-point input, in a fixed order."""
    with warnings.catch_warnings():  # computing the expected outputs overflows on purpose
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    found = [test for test in found if test.data_sets]
    operators = {test.name: test.model.graph.node[0].op_type for test in found}
    made = [
        _case(test, operators[test.name.partition("_expanded")[0]])
        for test in sorted(found, key=lambda test: test.name)
        if _is_floating(test.model.graph)
    ]
    return made + [wide for case in made if (wide := widened(case)) is not None]


def _is_floating(graph: onnx.GraphProto) -> bool:
    return any(value.type.tensor_type.elem_type in FLOATING for value in graph.input)


def _case(test: Any, operator: str) -> Case:
    model = onnx.ModelProto()
    model.CopyFrom(test.model)
    inputs, outputs = test.data_sets[0]
    names = [value.name for value in model.graph.input]
    given = dict(zip(names, map(_array, inputs), strict=True))
    constants = _constants(model.graph)
    for name, tensor in zip(names, inputs, strict=True):
        if name in constants and given[name] is not None:
            is_proto = isinstance(tensor, onnx.TensorProto)
            proto = model.graph.initializer.add()
            proto.CopyFrom(tensor if is_proto else onnx.numpy_helper.from_array(np.asarray(tensor)))
            proto.name = name
    initializers = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in initializers]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return Case(
        name=test.name,
        operator=operator,
        model=model,
        feed={name: array for name, array in given.items() if name not in initializers and array is not None},
        expected=dict(zip((value.name for value in model.graph.output), map(_array, outputs), strict=True)),
        rtol=test.rtol,
        atol=test.atol,
    )


def _array(value: Any) -> Array | None:
    """Return a tensor of a test as an array, bfloat16 as float32; None for a sequence or an absent optional."""
    if isinstance(value, onnx.TensorProto):
        value = onnx.numpy_helper.to_array(value)
    if not isinstance(value, (np.ndarray, np.generic)):
        return None
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _constants(graph: onnx.GraphProto) -> set[str]:
    """Return the inputs that are weights or parameters. One input always stays: a floating-point one, if possible."""
    named: list[str] = []
    for node in graph.node:
        positions = _CONSTANT_INPUTS.get(node.op_type, ())
        named += [node.input[position] for position in positions if position < len(node.input)]
    others = [value.name for value in graph.input if value.name not in named]
    floating = [value.name for value in graph.input if value.type.tensor_type.elem_type in FLOATING]
    return set(named) - (set() if others else set(floating[:1]))


_WIDE = 16
"""Factor on the channels of a widened case: INT8 is for 8 channels and for products of 16 x 16, and more."""


def widened(case: Case) -> Case | None:
    """Return a case of Conv, ConvTranspose, Gemm or MatMul with 16 times the channels, so that INT8 is used.

    Its weights and inputs are random; onnxruntime computes what is expected. None if the case has no constant weight,
    or more than one node.
    """
    import onnxruntime

    graph = case.model.graph
    if len(graph.node) != 1 or graph.node[0].op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return None
    node, weights = graph.node[0], {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weight = weights.get(node.input[1])
    x = case.feed.get(node.input[0])
    if weight is None or x is None or weight.ndim < 2 or x.ndim < 2 or weight.dtype != np.float32:
        return None
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    inner, outer = _channel_axes(node.op_type, weight.ndim, attributes)
    of_input = 1 if node.op_type.startswith("Conv") else x.ndim - (2 if attributes.get("transA") else 1)
    rng = np.random.default_rng(0)
    arrays = {node.input[0]: _random(x, {of_input: _WIDE}, rng)}
    if not node.op_type.startswith("Conv"):  # more than one row: a product of a vector is not quantized
        arrays[node.input[0]] = _random(x, dict.fromkeys((x.ndim - 2, x.ndim - 1), _WIDE), rng)
    constants = {node.input[1]: _random(weight, {inner: _WIDE, outer: _WIDE}, rng)}
    for name in node.input[2:]:
        bias = weights[name]
        rows = {bias.ndim - 2: _WIDE} if bias.ndim > 1 and bias.shape[-2] > 1 else {}
        columns = {bias.ndim - 1: _WIDE} if bias.ndim and bias.shape[-1] > 1 else {}
        constants[name] = _random(bias, {**rows, **columns}, rng)
    inputs = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, a.shape) for n, a in arrays.items()]
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    output = onnx.ValueInfoProto(name=graph.output[0].name)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "wide", inputs, [output], initializers),
        opset_imports=list(case.model.opset_import),
        ir_version=case.model.ir_version,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, arrays)[0]
    output.CopyFrom(onnx.helper.make_tensor_value_info(output.name, onnx.TensorProto.FLOAT, expected.shape))
    model.graph.output[0].CopyFrom(output)
    return replace(case, name=f"{case.name}_wide", model=model, feed=arrays, expected={output.name: expected})


def _channel_axes(operator: str, rank: int, attributes: Mapping[str, Any]) -> tuple[int, int]:
    """Return the axes of the input and of the output channels in a weight."""
    if operator == "Conv":
        return 1, 0
    if operator == "ConvTranspose":
        return 0, 1
    return (1, 0) if attributes.get("transB") else (rank - 2, rank - 1)


def _random(like: Array, factors: Mapping[int, int], rng: np.random.Generator) -> Array:
    shape = [size * factors.get(axis, 1) for axis, size in enumerate(like.shape)]
    return rng.normal(size=shape).astype(np.float32)
