"""Rule 7: the two products of attention, and whether a mask computed at run time stands between them.

    Q x K^T -> scale -> + mask -> Softmax -> x V

TensorRT fuses attention as a whole. Under a mask that is not constant its INT8 form does not exist, and quantizing the
two products would only break the fusion.

Touches: nothing; it reads an onnx-ir graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtopt.precision.graph import SAME_VALUES, constant, consumers, is_float, producer

if TYPE_CHECKING:
    import onnx_ir as ir

_SCALINGS = frozenset({"Mul", "Div", "Cast", *SAME_VALUES})
_MASKINGS = frozenset({"Add", "Sub", "Where"})
REASON = "a product of attention under a mask computed at run time: TensorRT fuses it in 16 bits"


def masked_products(graph: ir.Graph) -> dict[ir.Node, str]:
    """Return the MatMuls that compute and apply attention scores under a non-constant mask, each with the reason."""
    found: dict[ir.Node, str] = {}
    for node in graph:
        if node.op_type != "Softmax":
            continue
        scores, masked = _scores(node.inputs[0])
        if scores is not None and masked:
            found[scores] = REASON
            found.update(dict.fromkeys(_applied(node.outputs[0]), REASON))
    return found


def _scores(value: ir.Value | None) -> tuple[ir.Node | None, bool]:
    """Walk back from the Softmax to the product of two activations; say whether a mask was passed on the way."""
    masked = False
    while (node := producer(value)) is not None:
        if node.op_type == "MatMul":
            return (node if constant(node.inputs[1]) is None else None), masked
        computed = [v for v in node.inputs if is_float(v) and constant(v) is None]
        if node.op_type in _MASKINGS:
            masked = masked or any(constant(v) is None for v in node.inputs if v not in computed[:1])
            value = next((v for v in computed if _leads_to_product(v)), None)
        elif node.op_type in _SCALINGS and computed:
            value = computed[0]
        else:
            return None, False
    return None, False


def _leads_to_product(value: ir.Value | None) -> bool:
    todo, seen = [producer(value)], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type == "MatMul":
            return True
        if node.op_type in _SCALINGS | _MASKINGS:
            todo += [producer(before) for before in node.inputs]
    return False


def _applied(value: ir.Value) -> list[ir.Node]:
    """Products that read the attention weights."""
    todo, seen = consumers(value), set()
    while todo:
        node = todo.pop()
        if node not in seen and node.op_type in SAME_VALUES | {"Where", "Dropout"}:
            todo += consumers(node.outputs[0])
        seen.add(node)
    return [node for node in seen if node.op_type == "MatMul"]
