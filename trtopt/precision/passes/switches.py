"""A quantized network in which each quantization can be turned off at run time, so that one session runs all choices.

Every quantized input of a node becomes a selection between the quantized tensor and the exact one, by an element of a
new input. Activations can also be clipped without being rounded.

Touches: nothing; it reads the onnx-ir model it is given, and returns a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from trtopt.formats import Format
from trtopt.graph.query import constant, producer
from trtopt.precision import Request
from trtopt.precision.passes import eight_bits
from trtopt.precision.passes.appender import Appender
from trtopt.precision.passes.placement import place
from trtopt.types import Keep

if TYPE_CHECKING:
    import onnx_ir as ir

SWITCHES = "trtopt/switches"
"""The input that holds the switches, bool [switches]."""

Part = Literal["weight", "clip", "round", "bias"]
"""A part that a switch turns on: the weight, the clipping of an activation, its quantization, the corrected bias."""
PARTS: tuple[Part, ...] = ("weight", "clip", "round", "bias")


@dataclass(frozen=True, slots=True)
class Switch:
    """A switch: the quantized node, the position of its input (-1: the bias, which may belong to an Add), the part."""

    node: str
    index: int
    part: Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Switched:
    """A network with switches.

    Attributes:
        model: has the input `SWITCHES` beside those of the network.
        switches: in the order of that input.
        exact: the FP32 network that was quantized.
        request: the options of the quantization.
    """

    model: ir.Model
    switches: tuple[Switch, ...]
    exact: ir.Model
    request: Request

    def choice(self, kept: Collection[str]) -> npt.NDArray[np.bool_]:
        """Return the switches of the network in which these nodes are kept in FP32.

        The others are quantized as they are placed then: an average pool is not quantized beside a consumer that is
        kept. But tensors that share a scale keep it.
        """
        keep: Mapping[str, Keep] = {**self.request.keep, **{name: Keep(pattern=name) for name in kept}}
        sites = {(site.node.name, site.index) for site in place(self.exact, keep).sites}
        nodes = {name for name, _ in sites}
        return self._where(lambda each: (each.node, each.index) in sites or (each.index < 0 and each.node in nodes))

    def only(self, nodes: Collection[str], parts: Collection[Part] = PARTS) -> npt.NDArray[np.bool_]:
        """Return the switches of the network in which only these parts of these nodes are quantized."""
        return self._where(lambda each: each.node in nodes and each.part in parts)

    def _where(self, is_on: Callable[[Switch], bool]) -> npt.NDArray[np.bool_]:
        return np.array([is_on(each) for each in self.switches], np.bool_)


def switched(model: ir.Model, request: Request, format: Format) -> Switched:
    """Return a copy of a prepared FP32 model with a switch for everything that quantization replaces.

    Raises:
        TableError: the table lacks a scale.
        ModelError: the model is quantized already.
    """
    import onnx_ir as ir

    request = replace(request, rest="fp32")
    copy = model.clone()
    graph = copy.graph
    add = Appender(graph)
    source = ir.Value(name=SWITCHES, type=ir.TensorType(ir.DataType.BOOL))
    switches: list[Switch] = []

    def select(switch: Switch, on: ir.Value, off: ir.Value) -> ir.Value:
        """Append the selection of a tensor by a new switch."""
        flag = add.node("Gather", [source, add.constant(np.array(len(switches)))])
        flag.type = ir.TensorType(ir.DataType.BOOL)
        switches.append(switch)
        result = add.node("Where", [flag, on, off])
        result.shape = off.shape
        return result

    def attach(node: ir.Node, reader: ir.Node, index: int, before: ir.Value | None) -> None:
        after = reader.inputs[index]
        assert after is not None
        name = node.name or ""
        if before is None:  # a bias that the node did not have
            before = add.constant(np.zeros_like(constant(after)))
        pair = producer(after)
        if pair is None or pair.op_type != "DequantizeLinear":
            result = select(Switch(name, -1, "bias"), after, before)
        elif producer(pair.inputs[0]) is None:  # the codes of a weight are stored
            result = select(Switch(name, index, "weight"), after, before)
        else:
            scale = np.float32(constant(pair.inputs[1]))
            bounds = [add.constant(np.array(bound * scale, np.float32)) for bound in (format.min, format.max)]
            clipped = select(Switch(name, index, "clip"), add.node("Clip", [before, *bounds]), before)
            result = select(Switch(name, index, "round"), after, clipped)
        reader.replace_input_with(index, result)

    eight_bits.apply(copy, request, format, attach)
    source.shape = ir.Shape([len(switches)])
    if switches:
        graph.inputs.append(source)
    graph.sort()
    return Switched(model=copy, switches=tuple(switches), exact=model, request=request)
