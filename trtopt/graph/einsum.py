"""Einsums written as the operators that they are: a Transpose, or a MatMul between Transposes and Reshapes.

One exporter writes attention and linear layers as Einsum that another writes as MatMul. Only the latter can be
quantized, and the passes of `precision` know its axes.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trtopt.graph.query import (
    add_initializer,
    constant,
    dims,
    drop_unused_initializers,
    is_float,
    names,
    unique,
)

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class _Product:
    """The axes of a product of two tensors by their letters: in both and the result, one of them, or summed over."""

    batch: str
    rows: str
    columns: str
    inner: str


def expand_einsums(model: ir.Model) -> bool:
    """Replace the Einsums of the main graph that are transpositions or matrix products, and return whether there were.

    Constants must be initializers, and the shapes of all tensors must have been inferred.
    """
    taken = names(model.graph)
    changed = False
    for node in list(model.graph):
        if node.op_type == "Einsum" and node.domain in ("", "ai.onnx") and all(is_float(v) for v in node.inputs):
            terms = _terms(node)
            changed |= terms is not None and _Expansion(node, taken).expand(*terms)
    drop_unused_initializers(model.graph)
    return changed


def _terms(node: ir.Node) -> tuple[list[str], str] | None:
    """Return the letters of each operand and of the result, an ellipsis expanded to capital letters.

    None if the axes are not known, if a letter is repeated within an operand, or if an operand may be broadcast.
    """
    left, arrow, result = node.attributes["equation"].as_string().replace(" ", "").partition("->")
    operands = left.split(",")
    shapes = [dims(value) for value in node.inputs]
    if not arrow or any(shape is None for shape in shapes) or string.ascii_uppercase[0] in left:
        return None
    free = [len(shape or ()) - len(term.replace("...", "")) for term, shape in zip(operands, shapes, strict=True)]
    widest = max((count for term, count in zip(operands, free, strict=True) if "..." in term), default=0)
    letters = string.ascii_uppercase[:widest]
    operands = [term.replace("...", letters[widest - count :]) for term, count in zip(operands, free, strict=True)]
    result = result.replace("...", letters)
    sizes: dict[str, object] = {}
    for term, value in zip(operands, node.inputs, strict=True):
        if len(set(term)) != len(term) or value is None or value.shape is None or len(term) != len(value.shape):
            return None
        for letter, size in zip(term, value.shape, strict=True):
            if letter in letters and sizes.setdefault(letter, size) != size:
                return None
    return operands, result


def _product(left: str, right: str, result: str) -> _Product | None:
    """Return the axes of a matrix product; None for any other product, or if an axis of one operand is summed over."""
    product = _Product(
        batch="".join(a for a in left if a in right and a in result),
        rows="".join(a for a in left if a not in right),
        columns="".join(a for a in right if a not in left),
        inner="".join(a for a in left if a in right and a not in result),
    )
    is_summed = not set(product.rows + product.columns) <= set(result)
    return None if is_summed or not (product.rows and product.columns and product.inner) else product


class _Expansion:
    """The operators that replace one Einsum. They are inserted before it, and the last one takes over its name."""

    def __init__(self, node: ir.Node, taken: set[str]) -> None:
        self.node, self.taken = node, taken
        self.new: list[ir.Node] = []

    def expand(self, operands: Sequence[str], result: str) -> bool:
        """Replace the Einsum, given the letters of its operands and of its result, and return whether that was done."""
        values = [value for value in self.node.inputs if value is not None]
        if len(operands) == 1:
            if set(operands[0]) == set(result):
                self._replace(self._transposed(values[0], operands[0], result))
            return bool(self.new)
        if len(operands) != 2:
            return False
        if constant(values[0]) is not None:  # the weight is the right operand
            values, operands = values[::-1], operands[::-1]
        left_axes, right_axes = operands
        product = _product(left_axes, right_axes, result)
        if product is None:
            return False
        weight = constant(values[1])
        if weight is not None and not product.batch:
            self._replace(self._linear(values[0], weight, (left_axes, right_axes, result), product))
        elif len(product.columns) == len(product.inner) == 1:
            # MatMul repeats the right operand along the leading axes of the left one, here all rows but the last.
            rows = product.rows[:-1] + product.batch + product.rows[-1]
            left = self._transposed(values[0], left_axes, rows + product.inner)
            right = self._transposed(values[1], right_axes, product.batch + product.inner + product.columns)
            found = self._add("MatMul", [left, right])
            self._replace(self._transposed(found, rows + product.columns, result))
        return bool(self.new)

    def _linear(
        self, value: ir.Value, weight: np.ndarray[tuple[int, ...], np.dtype[np.generic]], terms: tuple[str, str, str],
        product: _Product,
    ) -> ir.Value:  # fmt: skip
        """Return the product with a constant, whose axes become those of one matrix."""
        left, right, result = terms
        sizes = dict(zip(right, weight.shape, strict=True))
        columns = "".join(a for a in result if a in product.columns)
        matrix = weight.transpose([right.index(a) for a in product.inner + columns])
        matrix = matrix.reshape(int(np.prod([sizes[a] for a in product.inner])), -1)
        value = self._transposed(value, left, product.rows + product.inner)
        if len(product.inner) > 1:
            value = self._reshaped(value, [*[0] * len(product.rows), matrix.shape[0]])
        found = self._add("MatMul", [value, self._constant("weight", matrix)])
        if len(columns) > 1:
            found = self._reshaped(found, [*[0] * len(product.rows), *(sizes[a] for a in columns)])
        return self._transposed(found, product.rows + columns, result)

    def _transposed(self, value: ir.Value, order: str, wanted: str) -> ir.Value:
        import onnx_ir as ir

        if order == wanted:
            return value
        return self._add("Transpose", [value], [ir.AttrInt64s("perm", [order.index(axis) for axis in wanted])])

    def _reshaped(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        return self._add("Reshape", [value, self._constant("shape", np.asarray(shape, np.int64))])

    def _constant(self, name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
        import onnx_ir as ir

        graph = self.node.graph
        assert isinstance(graph, ir.Graph)
        dtype = ir.DataType.from_numpy(array.dtype)
        return add_initializer(graph, unique(f"{self.node.name}/{name}", self.taken), array, dtype)

    def _add(self, op: str, inputs: Sequence[ir.Value], attributes: Sequence[ir.Attr] = ()) -> ir.Value:
        import onnx_ir as ir

        name = unique(f"{self.node.name or 'Einsum'}/{op}", self.taken)
        output = ir.Value(name=f"{name}_output", type=self.node.outputs[0].type)
        self.new.append(ir.Node("", op, inputs, attributes, outputs=[output], name=name))
        return output

    def _replace(self, value: ir.Value) -> None:
        from onnx_ir.convenience import replace_nodes_and_values

        graph = self.node.graph
        if graph is not None and self.new:
            replace_nodes_and_values(graph, self.node, [self.node], self.new, self.node.outputs, [value])
