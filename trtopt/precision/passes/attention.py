"""Rule 7: attention under a mask that is computed at run time, whose two matrix products are not quantized.

    Q x K^T -> scale -> + mask -> Softmax -> x V

TensorRT fuses the whole pattern into one kernel. It does not support that in INT8 if the mask is not constant, and Q/DQ
pairs at the two products would only prevent the fusion in 16 bits.

Touches: nothing; it reads an onnx-ir graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtopt.graph.query import SAME_VALUES, constant, consumers, is_float, producer

if TYPE_CHECKING:
    import onnx_ir as ir

_SCALINGS = frozenset({"Mul", "Div", "Cast", *SAME_VALUES})
_MASKINGS = frozenset({"Add", "Sub", "Where"})
REASON = "an attention product under a mask computed at run time: TensorRT fuses it in 16 bits"


def masked_products(graph: ir.Graph) -> dict[ir.Node, str]:
    """Return the MatMuls that compute or apply attention scores under a mask that is not constant, with the reason."""
    products: dict[ir.Node, str] = {}
    for node in graph:
        if node.op_type != "Softmax":
            continue
        scores, is_masked = _scores(node.inputs[0])
        if scores is not None and is_masked:
            products[scores] = REASON
            products.update(dict.fromkeys(_products_of_weights(node.outputs[0]), REASON))
    return products


def _scores(value: ir.Value | None) -> tuple[ir.Node | None, bool]:
    """Return the MatMul Q x K^T that the input of a Softmax comes from, and whether a mask was applied on the way.

    The MatMul is None if an operator other than scalings and masks is between the two, or if its right operand is a
    constant weight: it is then a linear layer, not attention.
    """
    is_masked = False
    while (node := producer(value)) is not None:
        if node.op_type == "MatMul":
            is_attention = constant(node.inputs[1]) is None
            return (node if is_attention else None), is_masked
        computed = [v for v in node.inputs if is_float(v) and constant(v) is None]
        if node.op_type in _MASKINGS:
            # One operand is the scores. Any other that is computed is a mask: the other addend, or Where's condition.
            others = [v for v in node.inputs if v not in computed[:1]]
            is_masked = is_masked or any(constant(v) is None for v in others)
            # Which of the two computed addends the scores are is decided by where they come from.
            value = next((v for v in computed if _comes_from_product(v)), None)
        elif node.op_type in _SCALINGS and computed:
            value = computed[0]
        else:
            return None, False
    return None, False


def _comes_from_product(value: ir.Value | None) -> bool:
    """Return whether a MatMul leads to the value through scalings and masks."""
    todo, visited = [producer(value)], set()
    while todo:
        node = todo.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if node.op_type == "MatMul":
            return True
        if node.op_type in _SCALINGS | _MASKINGS:
            todo += [producer(operand) for operand in node.inputs]
    return False


def _products_of_weights(value: ir.Value) -> list[ir.Node]:
    """Return the MatMuls that read the attention weights, the output of the Softmax, also after a mask or a Dropout."""
    todo, visited = consumers(value), set()
    while todo:
        node = todo.pop()
        if node not in visited and node.op_type in SAME_VALUES | {"Where", "Dropout"}:
            todo += consumers(node.outputs[0])
        visited.add(node)
    return [node for node in visited if node.op_type == "MatMul"]
