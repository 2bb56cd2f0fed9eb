"""Ways to damage a typed INT8 graph: what a wrong scale, a lost bias or a mixed-up weight leaves behind.

Touches: nothing.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_QMAX = 127
_FACTORS = {"x 4": 4.0, "/ 4": 0.25}
_Item = TypeVar("_Item")


class Graph:
    """An ONNX graph to be changed. A constant is replaced for one node only: others may share it."""

    def __init__(self, proto: onnx.GraphProto) -> None:
        self.proto = proto
        self._constants = {tensor.name: tensor for tensor in proto.initializer}
        self._makers = {name: node for node in proto.node for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in proto.node:
            for name in node.input:
                self._readers[name].append(node)

    def activations(self) -> list[onnx.NodeProto]:
        """Return the Q node of every quantized activation, in graph order."""
        return [node for node in self.proto.node if node.op_type == "QuantizeLinear"]

    def dequantizers(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return the DQ nodes that read what a Q node gives."""
        return self._readers[node.output[0]]

    def weights(self) -> list[tuple[onnx.NodeProto, onnx.NodeProto, int]]:
        """Return every operator with a constant weight, and where that is read: by which node, as which input.

        The node is the DQ before the operator, or the operator itself where it does not compute in INT8.
        """
        found = []
        for node in self.proto.node:
            if node.op_type in _WEIGHTED:
                maker = self._makers.get(node.input[1])
                if node.input[1] in self._constants:
                    found.append((node, node, 1))
                elif maker is not None and maker.input[0] in self._constants:
                    found.append((node, maker, 0))
        return found

    def biases(self) -> list[tuple[onnx.NodeProto, onnx.NodeProto, int]]:
        """Return every operator with a constant bias, and where that is read: by the operator, or by the Add behind."""
        found = []
        for node, _, _ in self.weights():
            if len(node.input) > 2:
                found.append((node, node, 2))
            for add in self._readers[node.output[0]]:
                if node.op_type == "MatMul" and add.op_type == "Add":
                    found += [(node, add, i) for i, name in enumerate(add.input) if name in self._constants]
        return found

    def constant(self, node: onnx.NodeProto, place: int) -> NDArray[Any]:
        """Return the constant that a node reads."""
        return numpy_helper.to_array(self._constants[node.input[place]])

    def replace(self, node: onnx.NodeProto, place: int, array: NDArray[Any]) -> None:
        """Let one node read another constant, of the same type."""
        was = self.constant(node, place)
        node.input[place] = self._add(f"{node.input[place]}/{node.name}/damaged", array.astype(was.dtype))

    def clip(self, node: onnx.NodeProto, limit: NDArray[Any]) -> None:
        """Let one node read its first input clipped to +- `limit`."""
        name = f"{node.input[0]}/clipped"
        limits = [self._add(f"{name}/low", -limit), self._add(f"{name}/high", limit)]
        place = [other.output[0] for other in self.proto.node].index(node.output[0])
        self.proto.node.insert(place, helper.make_node("Clip", [node.input[0], *limits], [name], name))
        node.input[0] = name

    def _add(self, name: str, array: NDArray[Any]) -> str:
        self.proto.initializer.append(numpy_helper.from_array(array, name))
        return name


Random = np.random.Generator
Damage = Callable[[Graph, float, Random], str]


def damaged(model: onnx.ModelProto, kind: str, place: float, random: Random) -> tuple[onnx.ModelProto, str]:
    """Return a copy of the model with one damage of a kind, and what was done, in words.

    `place` says where: 0 is the first layer that can be damaged so, and just below 1 the last.
    """
    model = copy.deepcopy(model)
    return model, KINDS[kind](Graph(model.graph), place, random)


def _pick(items: list[_Item], place: float) -> _Item:
    return items[int(place * len(items))]


def _scale_pair(graph: Graph, place: float, random: Random) -> str:
    node, factor = _pick(graph.activations(), place), random.choice(list(_FACTORS))
    _rescale(graph, [node, *graph.dequantizers(node)], _FACTORS[factor])
    return f"{node.input[0]}: scale {factor}"


def _scale_quantize(graph: Graph, place: float, random: Random) -> str:
    node, factor = _pick(graph.activations(), place), random.choice(list(_FACTORS))
    _rescale(graph, [node], _FACTORS[factor])
    return f"{node.input[0]}: scale of Q {factor}"


def _scale_dequantize(graph: Graph, place: float, random: Random) -> str:
    node, factor = _pick(graph.activations(), place), random.choice(list(_FACTORS))
    _rescale(graph, graph.dequantizers(node), _FACTORS[factor])
    return f"{node.input[0]}: scale of DQ {factor}"


def _rescale(graph: Graph, nodes: list[onnx.NodeProto], factor: float) -> None:
    for node in nodes:
        graph.replace(node, 1, graph.constant(node, 1) * factor)


def _scale_channels(graph: Graph, place: float, random: Random) -> str:
    quantized = [(layer, reader) for layer, reader, _ in graph.weights() if reader is not layer]
    (layer, reader), factor = _pick(quantized, place), random.choice(list(_FACTORS))
    scales = graph.constant(reader, 1).copy()
    channels = random.choice(scales.size, max(1, scales.size // 4), replace=False)
    scales[channels] *= _FACTORS[factor]
    graph.replace(reader, 1, scales)
    return f"{layer.name}: scales of {len(channels)} of {scales.size} channels {factor}"


def _zero_channel(graph: Graph, place: float, random: Random) -> str:
    layer, reader, index = _pick(graph.weights(), place)
    weight = np.moveaxis(graph.constant(reader, index).copy(), _channel_axis(layer), 0)
    channel = int(random.integers(len(weight)))
    weight[channel] = 0
    graph.replace(reader, index, np.moveaxis(weight, 0, _channel_axis(layer)))
    return f"{layer.name}: output channel {channel} of {len(weight)} zeroed"


def _channel_axis(layer: onnx.NodeProto) -> int:
    if layer.op_type == "Gemm":
        return 0 if any(attribute.name == "transB" and attribute.i for attribute in layer.attribute) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}[layer.op_type]


def _drop_bias(graph: Graph, place: float, _: Random) -> str:
    layer, reader, index = _pick(graph.biases(), place)
    graph.replace(reader, index, np.zeros_like(graph.constant(reader, index)))
    return f"{layer.name}: bias dropped"


def _shuffle(graph: Graph, place: float, random: Random) -> str:
    layer, reader, index = _pick(graph.weights(), place)
    weight = graph.constant(reader, index)
    graph.replace(reader, index, random.permutation(weight.reshape(-1)).reshape(weight.shape))
    return f"{layer.name}: weights shuffled"


def _clip(graph: Graph, place: float, random: Random) -> str:
    node = _pick(graph.activations(), place)
    if random.random() < 0.5:
        _rescale(graph, [node, *graph.dequantizers(node)], 0.5)
        return f"{node.input[0]}: scale halved"
    scale = graph.constant(node, 1)
    graph.clip(node, np.asarray(scale * _QMAX / 2, scale.dtype))
    return f"{node.name}: a Clip at half its range before it"


KINDS: dict[str, Damage] = {
    "activation: scale of Q and DQ x 4 or / 4": _scale_pair,
    "activation: scale of Q alone": _scale_quantize,
    "activation: scale of DQ alone": _scale_dequantize,
    "activation: clipped at half its range": _clip,
    "weight: scales of a quarter of the channels": _scale_channels,
    "weight: output channel zeroed": _zero_channel,
    "weight: shuffled": _shuffle,
    "bias: dropped": _drop_bias,
}
"""The kinds of damage, by the name that the page gives them."""
