"""The table of an engine's layers in report.html.

Touches: nothing.
"""

from __future__ import annotations

from trtopt.report.page.benchmark import number
from trtopt.types import Engine, LayerTimes, Table


def table(engine: Engine, times: LayerTimes | None) -> Table:
    """Return one row per layer: those that did not fuse are marked with what they are.

    The rows are in the order of execution. If the layers were timed, the slowest is first, and each row has the
    time and its share of the time of all layers.
    """
    timed = [(0.0 if times is None else times.ms.get(layer.name, 0.0), layer) for layer in engine.layers]
    total = sum(ms for ms, _ in timed) or 1.0
    rows = []
    for ms, layer in sorted(timed, key=lambda row: -row[0]):
        nodes = ", ".join(layer.nodes)
        took = () if times is None else (number(ms), f"{100 * ms / total:.1f} %")
        rows.append((layer.name, layer.type, layer.precision, *took, layer.apart, nodes, layer.tactic))
    head = () if times is None else ("ms", "share")
    order = (
        "in the order of execution" if times is None else f"timed one by one at batch {times.batch}, the slowest first"
    )
    return Table(
        title=f"Layers of the engine, {order}",
        head=("layer", "type", "precision", *head, "not fused", "nodes", "kernel"),
        rows=tuple(rows),
    )
