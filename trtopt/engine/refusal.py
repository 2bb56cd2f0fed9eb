"""What TensorRT's parser refuses, in its place in the graph, and what helps.

Touches: reads the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtopt.engine.diagnosis import rejected
from trtopt.errors import BuildError
from trtopt.types import Rejection

if TYPE_CHECKING:
    import onnx_ir as ir

_SHOWN = 3
_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A node that TensorRT does not take: its operator, domain and opset, TensorRT's reason, the nodes that it reads
    from and that read from it, each as `Operator name`, and what helps.
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
        of = f"domain {self.domain} " if self.domain else ""
        around = [
            f"{word} {', '.join(names)}" for word, names in (("after", self.before), ("before", self.after)) if names
        ]
        return f"{self.op} node {self.node} ({of}opset {self.opset}; {', '.join(around) or 'alone'}): {self.reason}"


def explain(path: Path, found: Sequence[Rejection]) -> tuple[Refusal, ...]:
    """Find each rejected node in the model, and say what helps.

    Raises:
        ModelError: the model cannot be read.
    """
    from trtopt.export.onnx import load_ir

    if not found:
        return ()
    model = load_ir(path)
    nodes = list(model.graph.all_nodes())
    named = {node.name: node for node in nodes} | {f"#{i}": node for i, node in enumerate(model.graph)}
    return tuple(_explain(each, named.get(each.node), model) for each in found)


def error(path: Path, found: Sequence[Rejection]) -> BuildError:
    """The error for a model in which the parser refuses these nodes."""
    if not any(each.node for each in found):
        return rejected(found)
    refusals = explain(path, found)
    more = f"; and {len(refusals) - _SHOWN} more" if len(refusals) > _SHOWN else ""
    helps = list(dict.fromkeys(help for each in refusals[:_SHOWN] for help in each.helps))
    return BuildError(
        "TensorRT does not take every operator of the model",
        why="; ".join(map(str, refusals[:_SHOWN])) + more,
        fix="; or ".join(helps),
    )


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
    before = [value.producer() for value in node.inputs if value is not None]
    after = [user for value in node.outputs for user, _ in value.uses()]
    domain = "" if node.domain in _STANDARD else node.domain
    opset = model.opset_imports.get(node.domain, 0)
    return Refusal(
        node=node.name or rejection.node,
        op=node.op_type,
        domain=domain,
        opset=opset,
        reason=reason,
        before=_names(each for each in before if each is not None),
        after=_names(after),
        helps=(*_helps(node, domain, opset), general),
    )


def _names(nodes: object) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"{node.op_type} {node.name}" for node in nodes))  # type: ignore[attr-defined]


def _helps(node: ir.Node, domain: str, opset: int) -> tuple[str, ...]:
    import onnx

    if domain:
        return (f"Load a TensorRT plugin called {node.op_type}",)
    if not onnx.defs.has(node.op_type, opset or 1, ""):
        return ()
    schema: Any = onnx.defs.get_schema(node.op_type, opset or 1, "")
    # Operators that ONNX itself defines by others: exporters write those out where the operator is not there yet.
    if schema.function_opset_versions or schema.context_dependent_function_opset_versions:
        older = next(version for version in range(opset + 1) if onnx.defs.has(node.op_type, version, "")) - 1
        if older > 0:
            return (f"Export at opset {older}, which has no {node.op_type}: it is written out in simpler operators",)
    return ()
