"""ONNX's own node tests as networks: weights and parameters become initializers, and the other inputs samples.

The tests of the `onnx` package give everything as an input. A network has its weights as constants, and so does every
shape, axis or scale that TensorRT must know when it builds.

Touches: the folder it is given.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
            np.savez(folder / f"samples/{number}.npz", **{name: shuffled(array, rng) if number else array
                                                          for name, array in self.feed.items()})  # fmt: skip
        return folder / "model.onnx"


def shuffled(array: Array, rng: np.random.Generator) -> Array:
    """Return floating-point values in another order, which keeps them in the domain of the operator."""
    if array.dtype.kind != "f":
        return array
    return rng.permutation(array.ravel()).reshape(array.shape)


def cases() -> list[Case]:
    """Return the node tests that have a floating-point input, in a fixed order."""
    with warnings.catch_warnings():  # computing the expected outputs overflows on purpose
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    operators = {test.name: test.model.graph.node[0].op_type for test in found}
    return [
        _case(test, operators[test.name.partition("_expanded")[0]])
        for test in sorted(found, key=lambda test: test.name)
        if _is_floating(test.model.graph)
    ]


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
            proto = onnx.numpy_helper.from_array(given[name], name)
            if isinstance(tensor, onnx.TensorProto):
                proto = onnx.TensorProto()
                proto.CopyFrom(tensor)
                proto.name = name
            model.graph.initializer.append(proto)
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
    """Return the inputs that are weights or parameters. One floating-point input always stays an input."""
    named: list[str] = []
    for node in graph.node:
        positions = _CONSTANT_INPUTS.get(node.op_type, ())
        named += [node.input[position] for position in positions if position < len(node.input)]
    others = [value.name for value in graph.input if value.name not in named]
    floating = [value.name for value in graph.input if value.type.tensor_type.elem_type in FLOATING]
    return set(named) - (set() if set(others) & set(floating) else set(floating[:1]))
