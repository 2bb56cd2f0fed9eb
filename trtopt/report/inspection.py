"""What `trtopt inspect` found, for a terminal.

Touches: nothing.
"""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trtopt.inspection import Inspection
from trtopt.report import words
from trtopt.report.text import safe
from trtopt.types import TensorSpec

_MAX_NODES = 4


def renderable(found: Inspection, *, nodes: bool) -> RenderableType:
    """Facts, then decisions: grouped by reason, or with `nodes` one line each."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    grid.add_row("file", safe(str(found.onnx.path)))
    grid.add_row("opset", str(found.onnx.opset))
    for label, specs in (("inputs", found.onnx.inputs), ("outputs", found.onnx.outputs)):
        for index, spec in enumerate(specs):
            grid.add_row("" if index else label, _spec(spec))
    operators = ", ".join(f"{count} {name}" for name, count in found.operators.items())
    grid.add_row("operators", safe(f"{sum(found.operators.values())}: {operators}"))
    weights = ", ".join(f"{size / 1e6:.2f} MB {name}" for name, size in found.weights.items())
    grid.add_row("parameters", f"{found.parameters:,}  ({weights})")
    if found.engine is not None:
        engine = found.engine
        grid.add_row("engine", f"{safe(str(engine.path))} ({engine.size_bytes / 1e6:.2f} MB), {safe(engine.builder)}")
    parts: list[RenderableType] = [grid]
    if found.decisions:
        parts += ["", _nodes(found) if nodes else _groups(found)]
    return Group(*parts)


def _spec(spec: TensorSpec) -> str:
    return safe(f"{spec.name}  {spec.dtype} [{', '.join(map(str, spec.shape))}]")


def _title(found: Inspection) -> str:
    return "precision, and why" if found.decided == "typed" else "what --precision int8 would do, and why"


def _nodes(found: Inspection) -> Table:
    table = Table(title=_title(found), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("precision", "operator", "node", "reason"):
        table.add_column(column, overflow="fold")
    for decision in found.decisions:
        table.add_row(decision.precision, safe(decision.op), safe(decision.node), safe(decision.reason))
    return table


def _groups(found: Inspection) -> RenderableType:
    table = Table(title=_title(found), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("precision")
    table.add_column("nodes", justify="right")
    table.add_column("reason", overflow="fold")
    table.add_column("which", overflow="fold")
    for precision in dict.fromkeys(decision.precision for decision in found.decisions):
        chosen = tuple(decision for decision in found.decisions if decision.precision == precision)
        for reason, names in words.grouped(chosen):
            more = f", and {len(names) - _MAX_NODES} more" if len(names) > _MAX_NODES else ""
            table.add_row(precision, str(len(names)), safe(reason), safe(", ".join(names[:_MAX_NODES])) + more)
    return Group(table, Text("every node: --nodes", style="dim"))
