"""Explanations of nodes that TensorRT's parser does not support: their place in the graph, and possible fixes.

Touches: reads the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtopt.engine.trt.diagnosis import ELSEWHERE, rejected
from trtopt.errors import BuildError, TrtoptError
from trtopt.types import Rejection

if TYPE_CHECKING:
    import onnx_ir as ir

_SHOWN = 3
_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Node that TensorRT does not support.

    `domain` is empty for the standard operators, `reason` is TensorRT's. `before` and `after` are the producers and the
    consumers of the node, each written as "operator name". `helps` are possible fixes, the most specific first.
    """

    node: str
    op: str
    domain: str
    opset: int
    reason: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    helps: tuple[str, ...]

    def __str__(self) -> str:
        domain = f"domain {self.domain} " if self.domain else ""
        neighbors = []
        if self.before:
            neighbors.append(f"after {', '.join(self.before)}")
        if self.after:
            neighbors.append(f"before {', '.join(self.after)}")
        place = ", ".join(neighbors) or "no neighbors"
        return f"{self.op} node {self.node} ({domain}opset {self.opset}; {place}): {self.reason}"


def explain(path: Path, rejections: Sequence[Rejection]) -> tuple[Refusal, ...]:
    """Find each rejected node in the model, and return its neighbors and possible fixes.

    Raises:
        ModelError: the model cannot be read.
    """
    from trtopt.graph.file import load_ir

    if not rejections:
        return ()
    model = load_ir(path)
    nodes = list(model.graph.all_nodes())
    # A rejection names the node, or has its index in the main graph as `#3` if it has no name.
    by_name = {node.name: node for node in nodes} | {f"#{i}": node for i, node in enumerate(model.graph)}
    return tuple(_explain(rejection, by_name.get(rejection.node), model) for rejection in rejections)


def error(path: Path, rejections: Sequence[Rejection]) -> BuildError:
    """Return the error for a model with nodes that the parser rejects.

    Raises:
        ModelError: the model cannot be read.
    """
    if not any(rejection.node for rejection in rejections):  # the parser rejects the file as a whole
        return rejected(rejections)
    refusals = explain(path, rejections)
    more = f"; and {len(refusals) - _SHOWN} more" if len(refusals) > _SHOWN else ""
    helps = list(dict.fromkeys(help for refusal in refusals[:_SHOWN] for help in refusal.helps))
    return BuildError(
        "TensorRT does not support all operators of the model",
        why="; ".join(map(str, refusals[:_SHOWN])) + more,
        fix="; or ".join([*helps[:1], *(help[0].lower() + help[1:] for help in helps[1:])]),
    )


def advised(error: BuildError, path: Path) -> BuildError:
    """Return the error without the advice to use onnxruntime, unless onnxruntime can load the model."""
    from trtopt.engine.onnxruntime import open_runner

    if ELSEWHERE not in error.fix:
        return error
    try:
        open_runner(path)
    except TrtoptError:
        return type(error)(error.what, why=error.why, fix=error.fix.replace(ELSEWHERE, ""))
    return error


def _explain(rejection: Rejection, node: ir.Node | None, model: ir.Model) -> Refusal:
    reason = f"{rejection.message} [{rejection.code}]"
    general = rejected([rejection]).fix
    if node is None:
        opset = model.opset_imports.get("", 0)
        return Refusal(
            node=rejection.node,
            op=rejection.op,
            domain="",
            opset=opset,
            reason=reason,
            before=(),
            after=(),
            helps=(general,),
        )
    producers = [value.producer() for value in node.inputs if value is not None]
    consumers = [consumer for value in node.outputs for consumer, _ in value.uses()]
    domain = "" if node.domain in _STANDARD else node.domain
    opset = model.opset_imports.get(node.domain, 0)
    return Refusal(
        node=node.name or rejection.node,
        op=node.op_type,
        domain=domain,
        opset=opset,
        reason=reason,
        before=_names(producer for producer in producers if producer is not None),
        after=_names(consumers),
        helps=(*_helps(node, domain, opset), general),
    )


def _names(nodes: object) -> tuple[str, ...]:
    """Return each node once, as "operator name"."""
    return tuple(dict.fromkeys(f"{node.op_type} {node.name}" for node in nodes))  # type: ignore[attr-defined]


def _helps(node: ir.Node, domain: str, opset: int) -> tuple[str, ...]:
    """Return the fixes that are specific to a node."""
    import onnx

    if domain == "com.microsoft":
        return (f"Export before onnxruntime's optimizer or quantizer, which adds {node.op_type}",)
    if domain:
        return (f"Load a TensorRT plugin named {node.op_type}",)
    if not onnx.defs.has(node.op_type, opset or 1, ""):
        return ()
    schema: Any = onnx.defs.get_schema(node.op_type, opset or 1, "")
    # ONNX defines some operators as functions of simpler ones. For an opset before such an operator was introduced,
    # exporters write the simpler operators instead.
    if schema.function_opset_versions or schema.context_dependent_function_opset_versions:
        introduced = next(version for version in range(opset + 1) if onnx.defs.has(node.op_type, version, ""))
        older = introduced - 1
        if older > 0:
            return (f"Export with opset {older}, where {node.op_type} is decomposed into simpler operators",)
    return ()
