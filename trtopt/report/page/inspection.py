"""Result of `trtopt inspect` for a terminal.

Touches: nothing.
"""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table

from trtopt.inspection import Inspection
from trtopt.report.page import words
from trtopt.report.text import block, facts, reasons, text
from trtopt.types import TensorSpec
from trtopt.wording import counted


def renderable(found: Inspection, *, nodes: bool) -> RenderableType:
    """Render facts, then decisions: grouped by reason, or with `nodes` one row per node."""
    operators = ", ".join(f"{count} {name}" for name, count in found.operators.items())
    weights = ", ".join(f"{words.size(size)} {name}" for name, size in found.weights.items())
    rows = [("opset", str(found.onnx.opset))]
    for label, specs in (("inputs", found.onnx.inputs), ("outputs", found.onnx.outputs)):
        rows += [("" if index else label, _spec(spec)) for index, spec in enumerate(specs)]
    rows += [
        ("operators", f"{sum(found.operators.values())}: {operators}"),
        ("parameters", f"{found.parameters:,}" + (f" ({weights})" if weights else "")),
    ]
    if found.engine is not None:
        engine = found.engine
        rows.append(("engine", f"{engine.path} ({words.size(engine.size_bytes)}), {engine.builder}"))
    parts: list[RenderableType] = ["", text(str(found.onnx.path), "bold"), *block(facts(rows))]
    if found.asked:
        parts += _refused(found)
    if found.decisions:
        wanted = "" if found.decided == "typed" else f" with --precision {found.decided.removesuffix(' would')}"
        parts += [text(f"precision of each node{wanted}, with the reason", "bold")]
        parts += block(_nodes(found) if nodes else reasons(words.grouped(found.decisions)))
        parts += [] if nodes else [text("--nodes lists every node", "dim")]
    return Group(*parts)


def _refused(found: Inspection) -> list[RenderableType]:
    count = len(found.refused)
    if not count:
        return [text(f"all operators are supported by {found.asked}", "bold"), ""]
    parts: list[RenderableType] = [text(f"{found.asked} does not support {counted(count, 'node')}", "bold")]
    for each in found.refused:
        rows = [("node", f"{each.node} ({each.op})"), ("reason", each.reason)]
        rows += [("opset", f"{each.opset}" + (f" of {each.domain}" if each.domain else ""))]
        rows += [
            (word, ", ".join(names))
            for word, names in (("inputs from", each.before), ("outputs to", each.after))
            if names
        ]
        rows += [("" if i else "fix", line) for i, line in enumerate(each.helps)]
        parts += block(facts(rows))
    return parts


def _spec(spec: TensorSpec) -> str:
    return f"{spec.name}  {spec.dtype} [{', '.join(map(str, spec.shape))}]"


def _nodes(found: Inspection) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for decision in found.decisions:
        node = text(f"{decision.node} ({decision.op})")
        grid.add_row(text(decision.precision), node.append_text(text(f": {decision.reason}", "dim")))
    return grid
