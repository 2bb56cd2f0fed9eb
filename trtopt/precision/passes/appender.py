"""Nodes appended to a graph to measure it.

Touches: the onnx-ir graph it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.graph.query import add_initializer, names, unique

if TYPE_CHECKING:
    import onnx_ir as ir


class Appender:
    """Appends nodes to a graph; `taken` are the names in use in it."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.taken = names(graph)

    def node(self, op: str, inputs: Sequence[ir.Value], attributes: Mapping[str, int] | None = None) -> ir.Value:
        """Append a node with one float32 result, and return the result."""
        import onnx_ir as ir

        node = ir.node(op, inputs, attributes or {}, name=unique(f"trtopt/{op}", self.taken))
        result = node.outputs[0]
        result.name = unique(f"trtopt/{op}/result", self.taken)
        result.type = ir.TensorType(ir.DataType.FLOAT)
        self.graph.append(node)
        return result

    def constant(self, array: npt.NDArray[np.generic]) -> ir.Value:
        """Add an initializer: float32 or int64."""
        import onnx_ir as ir

        dtype = ir.DataType.FLOAT if array.dtype == np.float32 else ir.DataType.INT64
        return add_initializer(self.graph, unique("trtopt/constant", self.taken), array, dtype)

    def energy(self, value: ir.Value) -> ir.Value:
        """Append the sum of the squares of a tensor, float32 [1], and return it."""
        flat = self.node("Reshape", [value, self.constant(np.array([-1]))])
        return self.node("ReduceSumSquare", [flat], {"keepdims": 1})

    def output(self, name: str, numbers: Sequence[ir.Value]) -> None:
        """Add a graph output that is the concatenation of float32 [1] tensors."""
        value = self.node("Concat", numbers, {"axis": 0})
        value.name = name
        self.graph.outputs.append(value)
