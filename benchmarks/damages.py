"""Ways to damage a typed INT8 graph: what a wrong scale, a lost bias or a corrupt weight looks like.

Touches: nothing.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_QMAX = 127
_FACTORS = {"x 4": 4.0, "/ 4": 0.25}
_Item = TypeVar("_Item")

Random = np.random.Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """A constant weight or bias of a layer: input `index` of `node`.

    The node is the layer itself, the DQ node before it, or the Add node behind it.
    """

    layer: onnx.NodeProto
    node: onnx.NodeProto
    index: int


class Graph:
    """An ONNX graph whose constants can be replaced for one consumer at a time."""

    def __init__(self, proto: onnx.GraphProto) -> None:
        self._proto = proto
        self._constants = {tensor.name: tensor for tensor in proto.initializer}
        self._producers = {name: node for node in proto.node for name in node.output}
        self._consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in proto.node:
            for name in node.input:
                self._consumers[name].append(node)

    def quantizers(self) -> list[onnx.NodeProto]:
        """Return the Q nodes of the activations, in graph order."""
        return [node for node in self._proto.node if node.op_type == "QuantizeLinear"]

    def dequantizers(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return the DQ nodes of a Q node."""
        return self._consumers[node.output[0]]

    def weights(self) -> list[Operand]:
        """Return the weights of all layers, in graph order."""
        found = []
        for layer in self._proto.node:
            if layer.op_type in _WEIGHTED:
                producer = self._producers.get(layer.input[1])
                if layer.input[1] in self._constants:
                    found.append(Operand(layer=layer, node=layer, index=1))
                elif producer and producer.op_type == "DequantizeLinear" and producer.input[0] in self._constants:
                    found.append(Operand(layer=layer, node=producer, index=0))
        return found

    def biases(self) -> list[Operand]:
        """Return the biases of all layers, in graph order."""
        found = []
        for layer in (weight.layer for weight in self.weights()):
            if layer.op_type != "MatMul":
                found += [Operand(layer=layer, node=layer, index=index) for index in range(2, len(layer.input))]
                continue
            for node in self._consumers[layer.output[0]]:
                places = [i for i, name in enumerate(node.input) if node.op_type == "Add" and name in self._constants]
                found += [Operand(layer=layer, node=node, index=index) for index in places]
        return found

    def constant(self, node: onnx.NodeProto, index: int) -> NDArray[Any]:
        """Return a copy of the constant that is input `index` of a node."""
        return numpy_helper.to_array(self._constants[node.input[index]]).copy()

    def replace(self, node: onnx.NodeProto, index: int, array: NDArray[Any]) -> None:
        """Replace a constant, for one node only, by an array that is converted to its type."""
        dtype = self.constant(node, index).dtype
        node.input[index] = self._add(f"{node.input[index]}/{node.name}/damaged", array.astype(dtype))

    def clip(self, node: onnx.NodeProto, limit: float, dtype: np.dtype[Any]) -> None:
        """Clip the first input of a node to +- `limit`; `dtype` is its type."""
        name = f"{node.input[0]}/clipped"
        limits = [self._add(f"{name}/{sign}", np.array(sign * limit, dtype)) for sign in (-1, 1)]
        place = [other.output[0] for other in self._proto.node].index(node.output[0])
        self._proto.node.insert(place, helper.make_node("Clip", [node.input[0], *limits], [name], name))
        node.input[0] = name

    def _add(self, name: str, array: NDArray[Any]) -> str:
        self._proto.initializer.append(numpy_helper.from_array(array, name))
        return name


def damaged(model: onnx.ModelProto, kind: str, place: float, random: Random) -> tuple[onnx.ModelProto, str]:
    """Return a copy of the model with one damage, and a description of the damage.

    `place` selects the layer: 0 is the first that can have this kind of damage, and just below 1 the last.
    """
    model = copy.deepcopy(model)
    return model, KINDS[kind](Graph(model.graph), place, random)


def _scale_pair(graph: Graph, place: float, random: Random) -> str:
    node, factor = _at(graph.quantizers(), place), _factor(random)
    _rescale(graph, [node, *graph.dequantizers(node)], _FACTORS[factor])
    return f"{node.input[0]}: scale {factor}"


def _scale_quantizer(graph: Graph, place: float, random: Random) -> str:
    node, factor = _at(graph.quantizers(), place), _factor(random)
    _rescale(graph, [node], _FACTORS[factor])
    return f"{node.input[0]}: scale of Q {factor}"


def _scale_dequantizers(graph: Graph, place: float, random: Random) -> str:
    node, factor = _at(graph.quantizers(), place), _factor(random)
    _rescale(graph, graph.dequantizers(node), _FACTORS[factor])
    return f"{node.input[0]}: scale of DQ {factor}"


def _clip(graph: Graph, place: float, random: Random) -> str:
    node = _at(graph.quantizers(), place)
    tensor, scale = node.input[0], graph.constant(node, 1)
    if random.random() < 0.5:
        _rescale(graph, [node, *graph.dequantizers(node)], 0.5)
        return f"{tensor}: scale halved"
    graph.clip(node, _QMAX * float(scale) / 2, scale.dtype)
    return f"{tensor}: clipped at half its range"


def _scale_channels(graph: Graph, place: float, random: Random) -> str:
    weight = _at([weight for weight in graph.weights() if weight.node is not weight.layer], place)
    scales, factor = graph.constant(weight.node, 1), _factor(random)
    channels = random.choice(scales.size, max(1, scales.size // 4), replace=False)
    scales[channels] *= _FACTORS[factor]
    graph.replace(weight.node, 1, scales)
    return f"{weight.layer.name}: scales of {len(channels)} of {scales.size} channels {factor}"


def _zero_channel(graph: Graph, place: float, random: Random) -> str:
    weight = _at(graph.weights(), place)
    array = graph.constant(weight.node, weight.index)
    channels = np.moveaxis(array, _channel_axis(weight.layer), 0)  # a view
    channel = int(random.integers(len(channels)))
    channels[channel] = 0
    graph.replace(weight.node, weight.index, array)
    return f"{weight.layer.name}: output channel {channel} of {len(channels)} zeroed"


def _shuffle(graph: Graph, place: float, random: Random) -> str:
    weight = _at(graph.weights(), place)
    array = graph.constant(weight.node, weight.index)
    graph.replace(weight.node, weight.index, random.permutation(array.reshape(-1)).reshape(array.shape))
    return f"{weight.layer.name}: weights shuffled"


def _drop_bias(graph: Graph, place: float, _: Random) -> str:
    bias = _at(graph.biases(), place)
    graph.replace(bias.node, bias.index, np.zeros_like(graph.constant(bias.node, bias.index)))
    return f"{bias.layer.name}: bias dropped"


def _at(items: Sequence[_Item], place: float) -> _Item:
    return items[int(place * len(items))]


def _factor(random: Random) -> str:
    return str(random.choice(list(_FACTORS)))


def _rescale(graph: Graph, nodes: Sequence[onnx.NodeProto], factor: float) -> None:
    for node in nodes:
        graph.replace(node, 1, graph.constant(node, 1) * factor)


def _channel_axis(layer: onnx.NodeProto) -> int:
    if layer.op_type == "Gemm":
        return 0 if any(attribute.name == "transB" and attribute.i for attribute in layer.attribute) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}[layer.op_type]


KINDS: dict[str, Callable[[Graph, float, Random], str]] = {
    "activation: scale of Q and DQ x 4 or / 4": _scale_pair,
    "activation: scale of Q alone x 4 or / 4": _scale_quantizer,
    "activation: scale of DQ alone x 4 or / 4": _scale_dequantizers,
    "activation: clipped at half its range": _clip,
    "weight: scales of a quarter of the channels x 4 or / 4": _scale_channels,
    "weight: output channel zeroed": _zero_channel,
    "weight: shuffled": _shuffle,
    "bias: dropped": _drop_bias,
}
"""The kinds of damage, by name."""
